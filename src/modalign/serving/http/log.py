"""The server's log: a line per request and what went wrong, on the error stream."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from modalign.visible import VisibleFormatter


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """While active, write this room's log and uvicorn's errors as lines with a time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(message)s"))
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
