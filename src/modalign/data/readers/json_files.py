"""JSON lists and JSON Lines. A line that cannot be read is reported and the next one is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modalign.data.readers.json_list import JsonListError, iter_json_list
from modalign.data.readers.result import RawRows, RowError
from modalign.errors import DataError
from modalign.strict_json import loads

BOM = b"\xef\xbb\xbf"


def read_json(path: Path) -> RawRows:
    """Yield the rows of a JSON list; a file of one object per line is read as JSON Lines.

    Raises:
        DataError: the file is not JSON, or is one object.
    """
    if _first_byte(path) != b"[" and not _is_one_document(path):
        yield from read_jsonl(path)
        return
    if _first_byte(path) != b"[":
        raise DataError(
            f"{path}: one JSON value ({_shown(loads(path.read_bytes()))}), not a list of rows. "
            "Save the list itself, or one object per line."
        )
    try:
        for number, row in enumerate(iter_json_list(path), start=1):
            yield number, row if isinstance(row, dict) else _not_an_object(row)
    except JsonListError as error:
        raise DataError(
            f"{path}:{error.line}: not valid JSON at column {error.column} ({error}). "
            "Correct the file there, or save one object per line (.jsonl): then only the broken "
            "line is lost."
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not usable JSON ({error}). Save one row per line.") from None


def read_jsonl(path: Path) -> RawRows:
    """Yield the rows of a file with one JSON object per line; blank lines are skipped."""
    for number, line in _lines(path):
        yield number, _parse_line(line)


def _parse_line(line: bytes) -> dict[str, Any] | RowError:
    try:
        row = loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(
            "encoding", f"byte {error.start + 1} of the line is not UTF-8: save it as UTF-8"
        )
    except json.JSONDecodeError as error:
        return RowError(
            "row", f"not valid JSON at column {error.colno} ({error.msg}): correct the line"
        )
    except ValueError as error:
        return RowError("row", f"not usable JSON ({error}): correct the line")
    return row if isinstance(row, dict) else _not_an_object(row)


def _not_an_object(row: Any) -> RowError:
    return RowError("row", f"a {type(row).__name__}, not an object with named fields")


def _shown(value: Any) -> str:
    return ", ".join(list(value)[:5]) if isinstance(value, dict) else type(value).__name__


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if content.strip():
                yield number, content


def _first_byte(path: Path) -> bytes:
    for _, line in _lines(path):
        return line.strip()[:1]
    return b""


def _is_one_document(path: Path) -> bool:
    """Whether a file is a single value that spans several lines."""
    lines = _lines(path)
    _, first = next(lines, (0, b""))
    if isinstance(_parse_line(first), dict) or path.suffix.lower() != ".json":
        return False
    try:
        loads(path.read_bytes())
    except ValueError:
        return False
    return True
