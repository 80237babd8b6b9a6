"""Files of edits as rows with the line each one starts on: JSON, JSON Lines and CSV.

``json.loads`` forgets where a record began, so a JSON list is read element by element: a message
about the 300th edit can say ``edits.json:2104``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.errors import DataError

FORMATS = ".json (a list, or an object that holds one), .jsonl or .csv"
_SPACE = re.compile(r"[ \t\r\n]*")
_RECORD_KEYS = {"prompt", "requested_rewrite", "src"}


@dataclass(frozen=True)
class Row:
    """One record of a file.

    Attributes:
        line: on which it starts, from 1.
        fields: by name; None where the row could not be read.
        problem: why not.
        cells: whether the values are a table's cells, where lists and numbers are text.
    """

    line: int
    fields: dict[str, Any] | None
    problem: str = ""
    cells: bool = False


def read_rows(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        DataError: the file is missing, empty, not UTF-8, of an unknown form, or broken as a whole.
    """
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        rows = _csv_rows(path, text)
    elif suffix in {".jsonl", ".ndjson"}:
        rows = _lines(text)
    elif suffix == ".json":
        rows = _json_rows(path, text)
    else:
        raise DataError(f"{path}: the form of the edits is not known. Give {FORMATS}.")
    if not rows:
        raise DataError(f"{path}: holds no edits")
    return rows


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        # utf-8-sig: a byte order mark is no part of the text.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} is not UTF-8: save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: holds no edits")
    return text


# --- JSON Lines -------------------------------------------------------------------------------


def _lines(text: str) -> list[Row]:
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string.
    return [
        _parsed(line, number)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _parsed(line: str, number: int) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(number, None, f"not valid JSON at column {error.colno} ({error.msg})")
    except (ValueError, RecursionError) as error:
        return Row(number, None, f"not usable JSON ({error})")
    return _row(value, number)


def _row(value: Any, line: int) -> Row:
    if isinstance(value, dict):
        return Row(line, value)
    return Row(line, None, f"a {type(value).__name__}, not an object with named fields")


# --- JSON -------------------------------------------------------------------------------------


class _Scanner:
    """Walks a JSON text value by value, knowing the line it is on."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text, self.at = path, text, 0
        self._decoder = json.JSONDecoder()
        self._counted, self._line = 0, 1

    def skip(self) -> str:
        """Pass over white space; the character after it, or nothing at the end."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    @property
    def line(self) -> int:
        """The line of the current place."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def value(self) -> Any:
        """The value that starts here."""
        try:
            value, self.at = self._decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self._refuse(error.lineno, error.colno, error.msg)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}:{self.line}: not usable JSON ({error})") from None
        return value

    def elements(self) -> Iterator[tuple[int, Any]]:
        """(line, value) of every element of the list that starts here."""
        self.expect("[")
        if self.skip() == "]":
            self.at += 1
            return
        while True:
            self.skip()
            yield self.line, self.value()
            if self.next_of(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Every name of the object that starts here; the caller takes its value."""
        self.expect("{")
        if self.skip() == "}":
            self.at += 1
            return
        while True:
            if self.skip() != '"':
                self._refuse_here("expected a name in quotation marks")
            name = self.value()
            self.expect(":")
            self.skip()
            yield name
            if self.next_of(",}") == "}":
                return

    def next_of(self, choices: str) -> str:
        """Take one of two marks."""
        found = self.skip()
        if not found or found not in choices:
            self._refuse_here(f"expected {' or '.join(choices)}")
        self.at += 1
        return found

    def expect(self, mark: str) -> None:
        """Take one mark."""
        self.next_of(mark)

    def _refuse_here(self, message: str) -> None:
        column = self.at - self.text.rfind("\n", 0, self.at)
        self._refuse(self.line, column, message)

    def _refuse(self, line: int, column: int, message: str) -> None:
        raise DataError(
            f"{self.path}:{line}: not valid JSON at column {column} ({message}). "
            "Correct the file there."
        )


def _json_rows(path: Path, text: str) -> list[Row]:
    scanner = _Scanner(path, text)
    first = scanner.skip()
    if first == "[":
        rows = [_row(value, line) for line, value in scanner.elements()]
    elif first == "{":
        if _one_object_per_line(text):
            return _lines(text)
        rows = _object_rows(path, scanner)
    else:
        raise DataError(f"{path}:{scanner.line}: neither a list nor an object. Give {FORMATS}.")
    if scanner.skip():
        raise DataError(f"{path}:{scanner.line}: more text after the end of the JSON value")
    return rows


def _one_object_per_line(text: str) -> bool:
    lines = [line for line in text.split("\n", 50) if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _object_rows(path: Path, scanner: _Scanner) -> list[Row]:
    """The rows of the one list of objects in an object; an object that is an edit is the one row."""
    start, names, lists, values = scanner.line, [], {}, {}
    for name in scanner.members():
        names.append(name)
        if scanner.skip() == "[":
            found = list(scanner.elements())
            values[name] = [value for _, value in found]
            if any(isinstance(value, dict) for _, value in found):
                lists[name] = [_row(value, line) for line, value in found]
        else:
            values[name] = scanner.value()
    if _RECORD_KEYS & set(names):
        return [Row(start, values)]
    if len(lists) != 1:
        number = "no list" if not lists else f"{len(lists)} lists ({', '.join(lists)})"
        raise DataError(
            f"{path}: an object with {number} of edits in it (its names: {', '.join(names[:8])}). "
            "Save the list of edits itself."
        )
    return next(iter(lists.values()))


# --- CSV --------------------------------------------------------------------------------------


def _csv_rows(path: Path, text: str) -> list[Row]:
    lines = text.splitlines(keepends=True)
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(path, reader)
    rows: list[Row] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            rows.append(
                Row(line, None, f"not valid CSV ({error}): check the quotation marks", True)
            )
            continue
        if len(cells) == len(header):
            fields = {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()}
            rows.append(Row(line, fields, cells=True))
        elif cells:
            message = (
                f"{len(cells)} cells under {len(header)} columns: quote cells with {delimiter!r}"
            )
            rows.append(Row(line, None, message, True))


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{path}:1: no readable CSV header ({error})") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: columns named twice: {', '.join(twice)}. Rename one of each.")
    return header
