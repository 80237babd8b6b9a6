"""Signals given inline in a row, as their modality allows: numbers, the columns of a table.

They become JSON bytes, so that later code has only two kinds of media: files and bytes. A list is one signal
if it holds numbers, or lists of numbers; in deeper lists, and lists of mappings, each item is one signal.
"""

from __future__ import annotations

import datetime
import decimal
from typing import Any

from modalign.data.modalities import modality_of
from modalign.data.readers.result import RowError
from modalign.strict_json import dumps, loads


def is_inline(value: Any, modality: str) -> bool:
    """Whether a value is one signal, not a reference to one or a list of several."""
    inline = modality_of(modality).inline
    return inline is not None and inline.is_one(value)


def to_json(value: Any, modality: str) -> bytes:
    """Encode an inline value as bytes.

    Raises:
        RowError: it cannot be represented in JSON.
    """
    try:
        return dumps(value, _plain).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise RowError("row", f"the {modality} in the row cannot be used ({error})") from None


def from_json(data: bytes, modality: str) -> Any:
    """Decode the bytes of `to_json`; None if they are something else."""
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
