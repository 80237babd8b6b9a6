"""The server's log: a line per request and what went wrong, on the error stream."""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Write the log of the room, and uvicorn's errors, as lines with a time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("modalign.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
