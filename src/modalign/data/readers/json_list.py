"""Read JSON value by value, with line numbers, in the memory of the longest item."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from modalign.strict_json import DECODER

CHUNK = 2**20  # characters
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonListError(ValueError):
    """The text is not the expected JSON; `line` and `column` say where."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def iter_json_list(path: Path) -> Iterator[Any]:
    """Yield the items of a file with one JSON list.

    Bytes that are not UTF-8 become lone surrogates.

    Raises:
        JsonListError: the text breaks off or is not JSON; the items before it have been given.
        ValueError: a value that is no strict JSON.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text = JsonText(file)
        for _, value in text.elements():
            yield value
        if text.next():
            raise text.error("Extra data")


class JsonText:
    """A window on a file that moves forward as tokens are consumed.

    Its methods raise JsonListError if the text is something else.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = DECODER
        self._buffer = ""
        self._at = 0
        self._marked = 0  # a position in the buffer whose line and column are known
        self._line = self._column = 1

    def next(self) -> str:
        """Peek at the next non-space character; empty at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def expect(self, *characters: str) -> str:
        """Consume one of these characters."""
        found = self.next()
        if found not in characters:
            raise self.error(f"Expecting {' or '.join(map(repr, characters))}")
        self._at += 1
        return found

    @property
    def line(self) -> int:
        """The line of the next non-space character, from 1."""
        self.next()
        self._mark()
        return self._line

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Consume a list; yield the line and the value of every element."""
        self.expect("[")
        if self.next() == "]":
            self.expect("]")
            return
        while True:
            yield self.line, self.value()
            if self.expect(",", "]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Consume an object; yield every name, whose value the caller consumes."""
        self.expect("{")
        if self.next() == "}":
            self.expect("}")
            return
        while True:
            if self.next() != '"':
                raise self.error("Expecting a name in quotation marks")
            name = self.value()
            self.expect(":")
            yield name
            if self.expect(",", "}") == "}":
                return

    def value(self) -> Any:
        """Consume a JSON value."""
        self.next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self.error(error.msg, error.pos) from None
                continue
            except ValueError as error:  # NaN or a duplicate key: more text would not help
                raise self.error(str(error)) from None
            if len(self._buffer) - end < len("e+1") and self._more():
                continue  # a number may continue in the next chunk
            self._at = end
            return value

    def error(self, message: str, position: int | None = None) -> JsonListError:
        """Create the error for a position of the buffer (default: the next character)."""
        line, column = self._place(self._at if position is None else position)
        return JsonListError(line, column, message)

    def _more(self) -> bool:
        """Discard consumed text and double the buffer, so that long items take linear time."""
        rest = self._buffer[self._at :]
        chunk = self._file.read(max(CHUNK, len(rest)))
        if not chunk:
            return False
        self._mark()
        self._buffer, self._at, self._marked = rest + chunk, 0, 0
        return True

    def _mark(self) -> None:
        self._line, self._column = self._place(self._at)
        self._marked = self._at

    def _place(self, position: int) -> tuple[int, int]:
        read = self._buffer[self._marked : position]
        lines = read.count("\n")
        if lines:
            return self._line + lines, len(read) - read.rfind("\n")
        return self._line, self._column + len(read)
