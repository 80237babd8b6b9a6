"""Numeric arrays from `.npy`, safetensors, a Parquet column, or JSON in the row.

The text after `#` names a part; rows are counted from 0:

| file | part |
|---|---|
| `x.npy` | none: the whole array; `#12`: row 12 (memory-mapped, so the rest is not read) |
| `x.safetensors` | `#name`, `#name:12`; none if the file holds one tensor |
| `x.parquet` | `#column:12`: one cell, a list of numbers or a list of such lists |
"""

from __future__ import annotations

import decimal
import io
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.cells import parquet_row
from modalign.data.records import Media
from modalign.data.signals import SignalError, inline_value, missing
from modalign.strict_json import loads

MAX_VALUES = 2**24  # per signal; more is probably a whole data set given by mistake
NPY = b"\x93NUMPY"


def read_array(media: Media) -> np.ndarray:
    """Read a medium's numbers as float32, in their own shape.

    Missing values (null) become NaN; each modality decides whether to accept them.

    Raises:
        SignalError: missing, damaged, not numeric, ragged, empty, or over ``MAX_VALUES`` numbers.
    """
    try:
        value = _from_bytes(media) if media.data is not None else _from_file(media)
    except FileNotFoundError:
        raise missing(media) from None
    except (OSError, ValueError, EOFError) as error:
        raise SignalError(media, f"cannot be read ({error})") from None
    return _numbers(media, value)


def row_number(media: Media, text: str) -> int:
    """Parse the row number of a part, from 0.

    Raises:
        SignalError: it is not a row number.
    """
    if not (text.isascii() and text.isdigit()):
        raise SignalError(media, f"{text!r} is not a row number: rows are 0, 1, 2, ...")
    return int(text)


def are_numbers(value: Any) -> bool:
    """Whether a value is one array: a list of numbers, or a list of such lists; None is a missing number."""
    return isinstance(value, list) and all(
        _is_number(item) or (isinstance(item, list) and all(map(_is_number, item)))
        for item in value
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float | decimal.Decimal)


def _from_bytes(media: Media) -> Any:
    data = media.data or b""
    return np.load(io.BytesIO(data)) if data.startswith(NPY) else inline_value(media)


def _from_file(media: Media) -> Any:
    file, part = media.located()
    readers = {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet, ".json": _json}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise SignalError(media, f"numbers are read from {', '.join(readers)}, or from the row")
    return reader(media, file, part)


def _numbers(media: Media, value: Any) -> np.ndarray:
    """Convert anything array-like to float32."""
    size = value.size if isinstance(value, np.ndarray) else 0
    if size > MAX_VALUES:  # before a mapped file is read
        raise SignalError(
            media,
            f"{' x '.join(map(str, value.shape))} numbers, more than the {MAX_VALUES:,} of one "
            "signal: select one row (#0, #1, ...)",
        )
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OUS":  # None among numbers; text is refused
            array = np.array(value, dtype=np.float64) if _no_text(value) else array
        if array.dtype.kind not in "biuf":
            raise ValueError(f"they are {array.dtype}")
        with np.errstate(over="ignore"):
            array = np.array(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        reason = "lists of unequal length" if "inhomogeneous" in str(error) else str(error)
        raise SignalError(media, f"is not an array of numbers ({reason})") from None
    if not array.size:
        raise SignalError(media, f"is empty (shape {array.shape})")
    return array


def _no_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_no_text, value))
    return value is None or isinstance(value, int | float)


def _npy(media: Media, file: Path, part: str | None) -> np.ndarray:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if part is None:
        return array
    return array[_row(media, part, array.shape)]


def _safetensors(media: Media, file: Path, part: str | None) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as tensors:  # numpy has no bfloat16
            names = list(tensors.keys())
            name, row = _named(part, names)
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                raise SignalError(
                    media, f"select one of its tensors with '#': {', '.join(names[:10])}"
                )
            if row is None:
                return tensors.get_tensor(name).float().numpy()
            rows = tensors.get_slice(name)
            return rows[_row(media, row, tuple(rows.get_shape()))].float().numpy()
    except SafetensorError as error:
        raise SignalError(media, f"cannot be read ({error})") from None


def _parquet(media: Media, file: Path, part: str | None) -> Any:
    column, _, row = (part or "").rpartition(":")
    if not column:
        raise SignalError(media, "give column and row: x.parquet#column:0")
    return parquet_row(media, file, row_number(media, row), [column])[column]


def _json(media: Media, file: Path, part: str | None) -> Any:
    value = loads(file.read_bytes())
    if part is None:
        return value
    if not isinstance(value, list):
        raise SignalError(media, "is not a list, so it has no rows")
    return value[_row(media, part, (len(value),))]


def _named(part: str | None, names: list[str]) -> tuple[str | None, str | None]:
    """Split a part into tensor name and row; a name may contain a colon."""
    if part is None or part in names:
        return part, None
    name, _, row = part.rpartition(":")
    return name or None, row


def _row(media: Media, part: str, shape: tuple[int, ...]) -> int:
    row = row_number(media, part)
    if not shape or row >= shape[0]:
        rows = shape[0] if shape else 0
        raise SignalError(media, f"has no row {row}: it has {rows}, counted from 0")
    return row
