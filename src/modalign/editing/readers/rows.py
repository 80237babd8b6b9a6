"""Read files of edits (JSON, JSON Lines, CSV) as rows, each with the line it starts on.

``json.loads`` forgets where a record began, so a JSON list is read element by element: a message
about the 300th edit can say ``edits.json:2104``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.readers.csv_files import csv_rows
from modalign.data.readers.json_list import JsonListError, JsonText
from modalign.data.readers.result import RowError
from modalign.errors import DataError
from modalign.strict_json import loads

SHOWN = 20  # problems listed in a message
FORMATS = ".json (a list, or an object that holds one), .jsonl or .csv"
_RECORD_KEYS = {"prompt", "requested_rewrite", "src"}


@dataclass(frozen=True)
class FileRow:
    """One record of a file.

    Attributes:
        line: the line it starts on, from 1.
        fields: by name; None if the row could not be read.
        problem: why it could not be read.
        cells: whether the values are a table's cells, where lists and numbers are text.
    """

    line: int
    fields: dict[str, Any] | None
    problem: str = ""
    cells: bool = False


def shown(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and how many more there are."""
    left = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"  ... and {left} more"] if left > 0 else [])]


def read_rows(path: Path) -> list[FileRow]:
    """Return the rows of a file.

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
        # utf-8-sig: a byte order mark is not part of the text.
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


def _lines(text: str) -> list[FileRow]:
    # Not splitlines(), which also breaks at characters that may occur inside a JSON string.
    return [
        _parsed(line, number)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _parsed(line: str, number: int) -> FileRow:
    try:
        value = loads(line)
    except json.JSONDecodeError as error:
        return FileRow(number, None, f"not valid JSON at column {error.colno} ({error.msg})")
    except ValueError as error:
        return FileRow(number, None, f"not usable JSON ({error})")
    return _row(value, number)


def _row(value: Any, line: int) -> FileRow:
    if isinstance(value, dict):
        return FileRow(line, value)
    return FileRow(line, None, f"a {type(value).__name__}, not an object with named fields")


# --- JSON -------------------------------------------------------------------------------------


def _json_rows(path: Path, text: str) -> list[FileRow]:
    scanner = JsonText(io.StringIO(text))
    try:
        first = scanner.next()
        if first == "[":
            rows = [_row(value, line) for line, value in scanner.elements()]
        elif first == "{":
            if _one_object_per_line(text):
                return _lines(text)
            rows = _object_rows(path, scanner)
        else:
            raise DataError(f"{path}:{scanner.line}: neither a list nor an object. Give {FORMATS}.")
        if scanner.next():
            raise DataError(f"{path}:{scanner.line}: more text after the end of the JSON value")
    except JsonListError as error:
        raise DataError(
            f"{path}:{error.line}: not valid JSON at column {error.column} ({error}). "
            "Correct the file there."
        ) from None
    except ValueError as error:
        raise DataError(f"{path}:{scanner.line}: not usable JSON ({error})") from None
    return rows


def _one_object_per_line(text: str) -> bool:
    lines = [line for line in text.split("\n", 50) if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return isinstance(loads(lines[0]), dict)
    except ValueError:
        return False


def _object_rows(path: Path, scanner: JsonText) -> list[FileRow]:
    """Return the rows of an object's one list of objects; an object that is itself an edit is the only row."""
    start, names, lists, values = scanner.line, [], {}, {}
    for name in scanner.members():
        names.append(name)
        if scanner.next() == "[":
            found = list(scanner.elements())
            values[name] = [value for _, value in found]
            if any(isinstance(value, dict) for _, value in found):
                lists[name] = [_row(value, line) for line, value in found]
        else:
            values[name] = scanner.value()
    if _RECORD_KEYS & set(names):
        return [FileRow(start, values)]
    if len(lists) != 1:
        number = "no list" if not lists else f"{len(lists)} lists ({', '.join(lists)})"
        raise DataError(
            f"{path}: an object with {number} of edits in it (its names: {', '.join(names[:8])}). "
            "Save the list of edits itself."
        )
    return next(iter(lists.values()))


# --- CSV --------------------------------------------------------------------------------------


def _csv_rows(path: Path, text: str) -> list[FileRow]:
    rows = []
    for line, found in csv_rows(io.StringIO(text, newline=""), path):
        if isinstance(found, RowError):
            rows.append(FileRow(line, None, str(found), True))
        elif found is not None:
            fields = {name: cell for name, cell in found.items() if cell.strip()}
            rows.append(FileRow(line, fields, cells=True))
    return rows
