"""Text of files, models and programs as a terminal may show it."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
import warnings

# All controls but tab and line break, DEL, C1, and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with controls written out: an escape sequence is read, not carried out.

    ``\\u001b`` and the like are also what JSON writes for them, so that JSON stays what it was.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


class VisibleFormatter(logging.Formatter):
    """Shows controls in what clients and files sent, instead of carrying them out."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its traceback included."""
        return visible(super().format(record))


class _VisibleRecord(logging.LogRecord):
    """A record that any library's handler may write."""

    def getMessage(self) -> str:  # noqa: N802 (the base's name)
        return visible(super().getMessage())


def show_controls() -> None:
    """Have what Python itself writes to the terminal shown: logs of any library, warnings, the ends of threads.

    For the program, once at its start: what it prints itself goes by :func:`visible` already.
    """
    logging.setLogRecordFactory(_VisibleRecord)
    if logging.lastResort is not None:  # writes what no handler takes
        logging.lastResort.setFormatter(VisibleFormatter())
    warnings.formatwarning = _warning
    threading.excepthook = _end_of_thread


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    return visible(f"{filename}:{lineno}: {category.__name__}: {message}\n")


def _end_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        said = traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback)
        print(visible("".join(said)), end="", file=sys.stderr)
