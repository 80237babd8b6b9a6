"""Numbers written for people: the one place where a figure becomes text.

Units are decimal (1 MB is 1,000,000 bytes); unknown values are an en dash, the minus is U+2212.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from modalign.numbers.estimate import Estimate

MISSING = "–"
MINUS = "−"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_COUNT_PREFIXES = ("", "k", "M", "B", "T")


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _digits(value: float) -> str:
    """At least two significant digits and no more than one decimal: 3.4, 34, 340."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _scaled(value: float, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """Digits and prefix of a non-negative value; 999.6 k becomes 1 M."""
    step = 0
    while step + 1 < len(prefixes) and value >= 999.5:
        value, step = value / 1000, step + 1
    return _digits(value), prefixes[step]


def _signed(text: str, value: float) -> str:
    return MINUS + text if value < 0 else text


def count(value: float | None) -> str:
    """Parameters, samples, tokens: ``1.2 M``."""
    if value is None or not _known(value):
        return MISSING
    digits, prefix = _scaled(abs(value), _COUNT_PREFIXES)
    return _signed(f"{digits} {prefix}".strip(), value)


def flops(value: float | None) -> str:
    """Floating-point operations: ``34 TFLOPs``."""
    if value is None or not _known(value):
        return MISSING
    digits, prefix = _scaled(abs(value), _PREFIXES)
    return _signed(f"{digits} {prefix}FLOPs", value)


def size(value: float | None) -> str:
    """Bytes: ``512 MB``."""
    if value is None or not _known(value):
        return MISSING
    digits, prefix = _scaled(abs(value), _PREFIXES)
    return _signed(f"{digits} {prefix}B", value)


def seconds(value: float | None) -> str:
    """Durations: ``85 ms``, ``12.3 s``, ``14 min``, ``3.2 h``."""
    if value is None or not _known(value):
        return MISSING
    amount = abs(value)
    if amount == 0:
        return "0 s"
    if amount < 0.9995:
        text = f"{_digits(amount * 1000)} ms"
    elif amount < 119.95:
        text = f"{amount:.1f} s"
    elif amount < 7170:
        text = f"{_digits(amount / 60)} min"
    else:
        text = f"{_digits(amount / 3600)} h"
    return _signed(text, value)


def percent(value: float | None) -> str:
    """A share of one: ``71.3 %``."""
    if value is None or not _known(value):
        return MISSING
    return _signed(f"{abs(value) * 100:.1f} %", round(value, 3))


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, signed: ``+4.1``."""
    if value is None or not _known(value):
        return MISSING
    rounded = round(value * 100, 1)
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.1f}"


def number(value: float | None, decimals: int = 2) -> str:
    """A plain number: ``3.18``."""
    if value is None or not _known(value):
        return MISSING
    return _signed(f"{abs(value):.{decimals}f}", round(value, decimals))


def scientific(value: float | None) -> str:
    """A learning rate: ``0.001``, ``3e-05``."""
    return f"{value:g}" if value is not None and _known(value) else MISSING


def p_value(value: float | None) -> str:
    """A probability: ``0.032``, ``< 0.001``."""
    if value is None or not _known(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def names(values: list[str]) -> str:
    """A list in a sentence: ``a, b and c``."""
    if len(values) < 2:
        return "".join(values)
    return f"{', '.join(values[:-1])} and {values[-1]}"


def _plain(value: float | None) -> str:
    """Two decimals, three for small numbers."""
    return number(value, 3 if value is not None and 0 < abs(value) < 0.1 else 2)


def _signed_number(value: float | None) -> str:
    return points(None if value is None else value / 100)


def _one_decimal(value: float | None) -> str:
    return number(value, 1)


# Unit -> how one of its values is written. Units that are not here are plain numbers.
UNITS: dict[str, Callable[[float | None], str]] = {
    "share": percent,
    "difference of shares": points,
    "percent": lambda value: percent(None if value is None else value / 100),
    "percentage points": _signed_number,
    "points": _one_decimal,
    "bits x 100": _one_decimal,
    "perplexity": _one_decimal,
    "layer": _one_decimal,
    "layers": _one_decimal,
    "score": lambda value: number(value, 3),
    "cosine": lambda value: number(value, 3),
    "Jaccard": lambda value: number(value, 3),
    "nats per token": lambda value: number(value, 4),
    "count": count,
    "flops": flops,
    "bytes": size,
    "seconds": seconds,
    "learning rate": scientific,
    "whole": lambda value: number(value, 0),
    "probability": number,
}


def in_unit(value: float | None, unit: str) -> str:
    """A number as its unit is written: a share ``71.3 %``, a difference of shares ``+4.1``."""
    return UNITS.get(unit, _plain)(value)


def value(estimate: Estimate | None) -> str:
    """The value alone, as its unit is written."""
    return MISSING if estimate is None else in_unit(estimate.value, estimate.unit)


def ends(estimate: Estimate | None) -> str:
    """The 95 % interval alone: ``68.0 to 74.4``; a dash where there is none."""
    if estimate is None or not estimate.bounded:
        return MISSING
    low, high = (in_unit(end, estimate.unit) for end in (estimate.low, estimate.high))
    return f"{low.removesuffix(' %')} to {high.removesuffix(' %')}"


def interval(estimate: Estimate | None) -> str:
    """An estimate with its 95 % interval, as its unit is written: ``71.3 % (68.0 to 74.4)``."""
    if estimate is None or not estimate.bounded:
        return value(estimate)
    return f"{value(estimate)} ({ends(estimate)})"


def point_interval(estimate: Estimate | None) -> str:
    """A difference of shares with its 95 % interval: ``+4.1 (+1.0 to +7.2)``."""
    if estimate is None:
        return MISSING
    return interval(estimate.model_copy(update={"unit": "difference of shares"}))
