"""The server's log: a line per request and what went wrong, on the error stream."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from modalign.visible import visible


class _Visible(logging.Formatter):
    """Shows controls in what clients and files sent, instead of carrying them out."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """While active, write this room's log and uvicorn's errors as lines with a time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(message)s"))
    loggers = {
        logging.getLogger("modalign.serving"): logging.INFO,
        logging.getLogger("uvicorn.error"): logging.WARNING,
    }
    before = {logger: (logger.level, logger.propagate) for logger in loggers}
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in before.items():
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
