"""Signals that a row holds itself: numbers of a series or of vectors, the columns of a table.

They become JSON bytes, so that what comes behind the readers knows two kinds of media only: files and
bytes. A list is one signal where it holds numbers, or lists of numbers; of deeper lists, and of lists of
mappings, each item is one.
"""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

from modalign.data.readers.result import RowError

INLINE = {
    "series": "a list of numbers (or of a list per step)",
    "vectors": "a list of numbers (or of such lists)",
    "table": "a mapping of columns",
}
REFERENCE_KEYS = {"path", "url", "bytes", "annotations"}


def is_inline(value: Any, modality: str) -> bool:
    """Whether a value is one signal, and no reference to one nor a list of several.

    A table's mapping is a reference only if it has no keys but a reference's.
    """
    if modality not in INLINE:
        return False
    if modality == "table":
        return isinstance(value, dict) and not (value and set(value) <= REFERENCE_KEYS)
    return isinstance(value, list) and all(
        _is_number(item) or (isinstance(item, list) and all(map(_is_number, item)))
        for item in value
    )


def to_json(value: Any, modality: str) -> bytes:
    """The bytes of an inline value.

    Raises:
        RowError: it holds something that JSON has no form for.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise RowError("row", f"the {modality} in the row cannot be used ({error})") from None


def from_json(data: bytes, modality: str) -> Any:
    """The value that `to_json` gave these bytes for, or None where they are something else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if is_inline(value, modality) else None


def _is_number(value: Any) -> bool:
    """Whether a value may stand in a list of numbers; None is a missing one."""
    return value is None or isinstance(value, int | float | decimal.Decimal)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError(f"it holds {type(value).__name__}; turn it into text or numbers")
