"""Tables: a medium is one row, a mapping of columns to numbers, categories or missing values."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

from modalign.data.arrays import row_number
from modalign.data.cells import cell, csv_row, parquet_names, parquet_row
from modalign.data.modalities import Inline, Modality
from modalign.data.records import REFERENCE_KEYS, Media
from modalign.data.signals import SignalError, inline_value, missing
from modalign.strict_json import loads

Value = float | str | None
Row = dict[str, Value]
WHOLE = (
    "whole tables go in as text or as pictures: modalign data tables DATA -o NEW.jsonl --as markdown "
    "(or picture)"
)
LARGEST = 3e38  # what 32 bits hold


def open_table(media: Media) -> Row:
    """Read one row.

    ``file.csv#3`` and ``file.parquet#3`` select a row of a file, counted from 0 after any header; a mapping
    may be given inline, or alone in a ``.json`` file. A value is a number, a category
    (text; true and false are categories) or missing: null, NaN, empty text, and in CSV also NA and the like.

    Raises:
        SignalError: unreadable, not a mapping, no columns, or an invalid value; the message names its column.
    """
    fields = _from_file(media, *media.located()) if media.data is None else inline_value(media)
    if is_whole(fields):
        raise SignalError(media, f"is a whole table, not a row of columns, and {WHOLE}")
    if not isinstance(fields, dict):
        raise SignalError(media, f"is {type(fields).__name__}, not a row of columns")
    if not fields:
        raise SignalError(media, "has no columns")
    return {name: _value(media, name, value) for name, value in fields.items()}


def check_table(media: Media) -> None:
    """Read a row once to check that `open_table` will work.

    Raises:
        SignalError: as `open_table` does.
    """
    open_table(media)


def blank_table(media: Media) -> Media:
    """Make a row with the same columns, all missing."""
    return Media("table", data=json.dumps(dict.fromkeys(open_table(media))).encode())


def _from_file(media: Media, file: Path, part: str | None) -> Any:
    suffix = file.suffix.lower()
    if suffix == ".json" and part is None:
        return _json(media, file)
    if suffix not in {".csv", ".tsv", ".parquet"}:
        raise SignalError(
            media,
            "name a row of a file: x.csv#0 or x.parquet#0, or write a mapping into the data's row",
        )
    if part is None:
        raise SignalError(
            media,
            f"name a row of a file: {file.name}#0; the file as a whole is a table, and {WHOLE}",
        )
    row = row_number(media, part)
    if suffix == ".parquet":
        return parquet_row(media, file, row, parquet_names(media, file))
    return {name: cell(text) for name, text in csv_row(media, file, row).items()}


def _json(media: Media, file: Path) -> Any:
    try:
        return loads(file.read_bytes())
    except FileNotFoundError:
        raise missing(media) from None
    except (OSError, ValueError) as error:
        raise SignalError(media, f"cannot be read ({error})") from None


def _value(media: Media, name: str, value: Any) -> Value:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float | decimal.Decimal):
        kind = type(value).__name__
        raise SignalError(media, f"column {name!r} holds a {kind}, not one value")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if abs(number) > LARGEST:
        raise SignalError(media, f"column {name!r} is {number}: not a finite number")
    return None if math.isnan(number) else number


def is_whole(value: Any) -> bool:
    """Whether a value is a whole table: a list of rows that are lists, or ``{"columns": ..., "rows": ...}``."""
    if isinstance(value, dict):
        rows = value.get("rows")
        return set(value) <= {"columns", "header", "rows"} and isinstance(rows, list)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) for row in value)
        and not any(isinstance(cell, list | dict) for row in value for cell in row)
    )


def _is_table(value: Any) -> bool:
    """Whether a value is a row or a whole table; a mapping with no keys but a reference's is a reference."""
    if isinstance(value, dict):
        return not (value and set(value) <= REFERENCE_KEYS)
    return is_whole(value)


TABLE = Modality(
    name="table",
    words="a table",
    check=check_table,
    blank=blank_table,
    encoder="modalign.encoders.table",
    loader="modalign.models.encoders.table",
    inline=Inline(
        words="a mapping of columns",
        is_one=_is_table,
        schema=dict[str, str | float | bool | None],
        json="object",
    ),
    no_noise="a table's cells are names as well as numbers",
    chat_part='{"type": "table", "table": {"column": 1.5}}',
    chat_note="one row: a number, a category or None by column",
)
