"""Libraries that load and save keep to themselves: their bars and lines are none of the caller's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

CHATTY = ("peft", "accelerate")


@contextmanager
def quietly() -> Iterator[None]:
    """Let only errors of transformers, peft and accelerate through for as long as this lasts.

    What the caller had set holds again afterwards. As a decorator: for every call.
    """
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
