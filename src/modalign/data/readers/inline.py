"""Signals that a row holds itself, as their modality allows: numbers, the columns of a table.

They become JSON bytes, so that what comes behind the readers knows two kinds of media only: files and
bytes. A list is one signal where it holds numbers, or lists of numbers; of deeper lists, and of lists of
mappings, each item is one.
"""

from __future__ import annotations

import datetime
import decimal
from typing import Any

from modalign.data.modalities import modality_of
from modalign.data.readers.result import RowError
from modalign.strict_json import dumps, loads


def is_inline(value: Any, modality: str) -> bool:
    """Whether a value is one signal, and no reference to one nor a list of several."""
    inline = modality_of(modality).inline
    return inline is not None and inline.is_one(value)


def to_json(value: Any, modality: str) -> bytes:
    """The bytes of an inline value.

    Raises:
        RowError: it holds something that JSON has no form for.
    """
    try:
        return dumps(value, _plain).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise RowError("row", f"the {modality} in the row cannot be used ({error})") from None


def from_json(data: bytes, modality: str) -> Any:
    """The value that `to_json` gave these bytes for, or None where they are something else."""
    try:
        value = loads(data)
    except ValueError:
        return None
    return value if is_inline(value, modality) else None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError(f"it holds {type(value).__name__}; turn it into text or numbers")
