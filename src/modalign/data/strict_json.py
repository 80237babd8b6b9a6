"""JSON as its standard has it (RFC 8259).

Python's own reader also takes ``NaN`` and ``Infinity``, turns 1e999 into infinity, and of equal names in one
object keeps the last: each would train on something that the file does not say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON: write null where a value is missing")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is larger than a number can be: correct it")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object: keep one of them")
    return found


DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_constant=_not_a_number, parse_float=_finite
)


def loads(text: str | bytes) -> Any:
    """Read one JSON value.

    Raises:
        ValueError: not JSON (a JSONDecodeError, with its place), or one of the three things above.
        UnicodeDecodeError: bytes that are no UTF-8.
        RecursionError: nested too deeply.
    """
    return DECODER.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)


def dumps(value: Any, default: Callable[[Any], Any]) -> str:
    """Write one JSON value; NaN, which stands for a missing number in arrays and Parquet files, as null.

    Raises:
        ValueError, TypeError: an infinite number, or a value that ``default`` has no form for.
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
