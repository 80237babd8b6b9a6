"""A JSON list read item by item, so that a file of any size takes the memory of its longest item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 2**20  # characters
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonListError(ValueError):
    """The text is not a JSON list; `line` and `column` say where it stops being one."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def iter_json_list(path: Path) -> Iterator[Any]:
    """Yield the items of a file that holds one JSON list.

    Bytes that are no UTF-8 become lone surrogates.

    Raises:
        JsonListError: the text breaks off or is not JSON; the items before it have been given.
        ValueError, RecursionError: a value that Python cannot hold.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text = _Text(file)
        text.expect("[")
        if text.next() == "]":
            text.expect("]")
        else:
            yield text.value()
            while text.expect(",", "]") == ",":
                yield text.value()
        if text.next():
            raise text.error("Extra data")


class _Text:
    """A window on a file that moves forward over the tokens taken from it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._column = 1  # of the buffer's first character

    def next(self) -> str:
        """The next character that is no white space, not taken; none at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def expect(self, *characters: str) -> str:
        """Take one of these characters."""
        found = self.next()
        if found not in characters:
            raise self.error(f"Expecting {' or '.join(map(repr, characters))}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Take a JSON value."""
        self.next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self.error(error.msg, error.pos) from None
                continue
            if len(self._buffer) - end < len("e+1") and self._more():
                continue  # a number may go on in the next chunk
            self._at = end
            return value

    def error(self, message: str, position: int | None = None) -> JsonListError:
        """What is wrong at a position of the buffer (default: the next character)."""
        read = self._buffer[: self._at if position is None else position]
        line, column = self._moved(read)
        return JsonListError(line, column, message)

    def _more(self) -> bool:
        """Forget what was taken and read as much again as there is, so that long items stay linear."""
        rest = self._buffer[self._at :]
        chunk = self._file.read(max(CHUNK, len(rest)))
        if not chunk:
            return False
        self._line, self._column = self._moved(self._buffer[: self._at])
        self._buffer, self._at = rest + chunk, 0
        return True

    def _moved(self, read: str) -> tuple[int, int]:
        """Line and column after the characters read from the buffer's start on."""
        lines = read.count("\n")
        if lines:
            return self._line + lines, len(read) - read.rfind("\n")
        return self._line, self._column + len(read)
