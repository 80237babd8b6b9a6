"""The Python API writes nothing of its libraries, and leaves their settings as they were."""

from __future__ import annotations

import pytest
from transformers.utils import logging

from modalign.models.compose import load_language_model
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.starter.build import WEIGHTS


def test_loading_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    load_language_model(str(WEIGHTS / "language"))
    open_model(WEIGHTS / "language")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("shown", [True, False])
def test_what_the_caller_set_holds_again(shown: bool) -> None:
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with quietly(), quietly():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        with pytest.raises(ZeroDivisionError), quietly():
            1 / 0  # noqa: B018 - what fails is told, too
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
