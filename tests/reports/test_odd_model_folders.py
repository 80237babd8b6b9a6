"""Model folders whose configurations are no configurations: one sentence that names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modalign.errors import ModalignError
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from reports.threads import reported

ODD = {
    "null": b"null",
    "a list": b"[]",
    "a text": b'"llama"',
    "nothing": b"",
    "half": b'{"model_type": "lla',
    "deep": b"[" * 100_000,
    "deep within": b'{"model_type": ' + b"[" * 100_000,
    "a name twice": b'{"model_type": "llama", "model_type": "gpt2"}',
    "no UTF-8": b"\xff\xfe{",
    "a kind that is a list": b'{"model_type": ["llama"]}',
    "an unknown kind": b'{"model_type": "evil"}',
    "no kind": b"{}",
}


@reported("ijl/orjson#458", "run-llama/llama_index#18877")
@pytest.mark.parametrize("name", ODD)
def test_a_configuration_that_is_none(
    name: str, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(llm_folder("llama"), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(ODD[name])
    for read in (open_model, open_composed):
        with pytest.raises(ModalignError) as error:
            read(str(tmp_path / "model"))
        assert str(tmp_path / "model") in str(error.value)
        assert len(str(error.value).splitlines()) == 1
