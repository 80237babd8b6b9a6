"""Formatting of numbers for people: the only place where figures become text.

Units are decimal (1 MB is 1,000,000 bytes); unknown values are an en dash, the minus is U+2212.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from modalign.numbers.estimate import Estimate

MISSING = "–"
MINUS = "−"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_COUNT_PREFIXES = ("", "k", "M", "B", "T")
Options = ParamSpec("Options")


def _or_missing(
    write: Callable[Concatenate[float, Options], str],
) -> Callable[Concatenate[float | None, Options], str]:
    """Write a dash for an unknown number."""

    @functools.wraps(write)
    def written(value: float | None, *options: Options.args, **named: Options.kwargs) -> str:
        if value is None or not math.isfinite(value):
            return MISSING
        return write(value, *options, **named)

    return written


def _digits(value: float) -> str:
    """Format with at least two significant digits and at most one decimal: 3.4, 34, 340."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _scaled(value: float, prefixes: tuple[str, ...]) -> tuple[str, str]:
    """Digits and prefix of a non-negative value; 999.6 k becomes 1 M."""
    step = 0
    while step + 1 < len(prefixes) and value >= 999.5:
        value, step = value / 1000, step + 1
    return _digits(value), prefixes[step]


def _signed(text: str, value: float) -> str:
    return MINUS + text if value < 0 else text


@_or_missing
def count(value: float) -> str:
    """Format parameters, samples or tokens: ``1.2 M``."""
    digits, prefix = _scaled(abs(value), _COUNT_PREFIXES)
    return _signed(f"{digits} {prefix}".strip(), value)


@_or_missing
def flops(value: float) -> str:
    """Format floating-point operations: ``34 TFLOPs``."""
    digits, prefix = _scaled(abs(value), _PREFIXES)
    return _signed(f"{digits} {prefix}FLOPs", value)


@_or_missing
def size(value: float) -> str:
    """Format bytes: ``512 MB``."""
    digits, prefix = _scaled(abs(value), _PREFIXES)
    return _signed(f"{digits} {prefix}B", value)


@_or_missing
def seconds(value: float) -> str:
    """Format a duration: ``85 ms``, ``12.3 s``, ``14 min``, ``3.2 h``."""
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


@_or_missing
def percent(value: float) -> str:
    """Format a share of one: ``71.3 %``."""
    return _signed(f"{abs(value) * 100:.1f} %", round(value, 3))


@_or_missing
def points(value: float) -> str:
    """Format a difference of two shares in signed percentage points: ``+4.1``."""
    rounded = round(value * 100, 1)
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else MINUS}{abs(rounded):.1f}"


@_or_missing
def number(value: float, decimals: int = 2) -> str:
    """Format a plain number: ``3.18``."""
    return _signed(f"{abs(value):.{decimals}f}", round(value, decimals))


@_or_missing
def scientific(value: float) -> str:
    """Format a learning rate: ``0.001``, ``3e-05``."""
    return f"{value:g}"


@_or_missing
def p_value(value: float) -> str:
    """Format a probability: ``0.032``, ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def names(values: list[str]) -> str:
    """Join a list for a sentence: ``a, b and c``."""
    if len(values) < 2:
        return "".join(values)
    return f"{', '.join(values[:-1])} and {values[-1]}"


_TIMES = {1 / 4: "a quarter of", 1 / 3: "a third of", 1 / 2: "half", 1: "", 2: "twice"} | {
    number: f"{word} times"
    for number, word in enumerate(("three", "four", "five", "six", "seven", "eight"), start=3)
}


def times(ratio: float, what: str) -> str:
    """Compare two amounts in words: ``four times the tokens``, ``half the tokens``."""
    nearest = min(_TIMES, key=lambda each: abs(math.log(ratio / each)))
    if abs(ratio / nearest - 1) > 0.06:
        return f"{ratio:.2g} times the {what}" if ratio < 10 else f"{ratio:,.0f} times the {what}"
    return f"about the same {what}" if nearest == 1 else f"{_TIMES[nearest]} the {what}"


@_or_missing
def _plain(value: float) -> str:
    """Format with two decimals, or three for small numbers."""
    return number(value, 3 if 0 < abs(value) < 0.1 else 2)


def _decimals(digits: int) -> Callable[[float | None], str]:
    return lambda value: number(value, digits)


# Unit -> format of its values. Other units are plain numbers.
UNITS: dict[str, Callable[[float | None], str]] = {
    "share": percent,
    "difference of shares": points,
    "percent": _or_missing(lambda value: percent(value / 100)),
    "percentage points": _or_missing(lambda value: points(value / 100)),
    **dict.fromkeys(("points", "bits x 100", "perplexity", "layer", "layers"), _decimals(1)),
    **dict.fromkeys(("score", "cosine", "Jaccard", "bits per byte"), _decimals(3)),
    "nats per token": _decimals(4),
    "count": count,
    "flops": flops,
    "bytes": size,
    "seconds": seconds,
    "learning rate": scientific,
    "whole": _decimals(0),
    "probability": number,
}


def in_unit(value: float | None, unit: str) -> str:
    """Format a number by its unit: a share ``71.3 %``, a difference of shares ``+4.1``."""
    return UNITS.get(unit, _plain)(value)


def value(estimate: Estimate | None) -> str:
    """Format only the value, by its unit."""
    return MISSING if estimate is None else in_unit(estimate.value, estimate.unit)


def ends(estimate: Estimate | None) -> str:
    """Format only the 95 % interval: ``68.0 to 74.4``, or a dash if there is none."""
    if estimate is None or not estimate.bounded:
        return MISSING
    low, high = (in_unit(end, estimate.unit) for end in (estimate.low, estimate.high))
    return f"{low.removesuffix(' %')} to {high.removesuffix(' %')}"


def interval(estimate: Estimate | None) -> str:
    """Format an estimate with its 95 % interval, by its unit: ``71.3 % (68.0 to 74.4)``."""
    if estimate is None or not estimate.bounded:
        return value(estimate)
    return f"{value(estimate)} ({ends(estimate)})"


def point_interval(estimate: Estimate | None) -> str:
    """Format a difference of shares with its 95 % interval: ``+4.1 (+1.0 to +7.2)``."""
    if estimate is None:
        return MISSING
    return interval(estimate.model_copy(update={"unit": "difference of shares"}))
