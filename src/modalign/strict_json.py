"""Strict JSON (RFC 8259).

Python's own parser also accepts ``NaN`` and ``Infinity``, turns 1e999 into infinity, and keeps the last of
duplicate keys in one object: each would train on something that the file does not say. It turns ``\\ud800``
into half a character, which no file or terminal accepts, and accepts nesting so deep that writing the value
overflows the stack.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalign.errors import DataError, first_line

DEPTH = 200  # maximum nesting of lists and objects; pydantic's limit, too
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number: write null for a missing value")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number: correct it")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object: keep one of them")
    return found


class _Decoder(json.JSONDecoder):
    """Python's parser, restricted to the standard and to a depth."""

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Return a value and its end; `decode` uses this, too."""
        try:
            value, end = super().raw_decode(s, idx)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
        if s.count("[", idx, end) + s.count("{", idx, end) > DEPTH and is_deep(value):
            raise ValueError(_TOO_DEEP)
        # Text that was not UTF-8 already has such halves, which its reader reports.
        if _HALF.search(s, idx, end) and _has_half(value) and not _has_half(s[idx:end]):
            raise ValueError("a \\u escape is half a character: write both halves, or none")
        return value, end


_TOO_DEEP = f"more than {DEPTH} nested lists and objects: flatten it"

DECODER = _Decoder(
    object_pairs_hook=_without_repeats, parse_constant=_not_a_number, parse_float=_finite
)
_OF_ARRAYS = _Decoder(object_pairs_hook=_without_repeats)


def is_deep(value: Any) -> bool:
    """Tell whether more than `DEPTH` lists and objects are nested, or one contains itself (as in YAML)."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        # Each once: YAML's aliases make one object of many, and a few lines could mean billions.
        inner = {
            id(item): item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        }
        level = list(inner.values())
    return bool(level)


def _has_half(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def loads(text: str | bytes, *, nan: bool = False) -> Any:
    """Read one JSON value.

    Args:
        text: the JSON text, or its UTF-8 bytes.
        nan: accept NaN and infinities: a signal's reader takes the former as missing and names the latter's place.

    Raises:
        ValueError: not JSON (a JSONDecodeError, with its position), or one of the cases above.
        UnicodeDecodeError: bytes that are not UTF-8.
    """
    decoder = _OF_ARRAYS if nan else DECODER
    return decoder.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, such as a model's configuration; NaN and infinities may stand in it.

    Raises:
        DataError: it cannot be read, is no strict JSON, or holds something else; the message names the file.
    """
    try:
        found = loads(path.read_text(encoding="utf-8"), nan=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not JSON of an object, but {type(found).__name__}")
    return found


def dumps(value: Any, default: Callable[[Any], Any]) -> str:
    """Write one JSON value; NaN, the missing value of arrays and Parquet files, becomes null.

    Raises:
        ValueError, TypeError: an infinite number, or a value that ``default`` cannot convert.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=default, allow_nan=False)
    except ValueError:
        value = _without_nan(value)
        return json.dumps(value, ensure_ascii=False, default=default, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
