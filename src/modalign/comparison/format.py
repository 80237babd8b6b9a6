"""Numbers of a comparison written for people: those of ``pages.numbers``, and intervals."""

from __future__ import annotations

from modalign.comparison.results import Interval
from modalign.pages.numbers import (
    MINUS,
    MISSING,
    count,
    flops,
    names,
    number,
    p_value,
    percent,
    points,
    scientific,
    seconds,
    size,
)

__all__ = [
    "MINUS",
    "MISSING",
    "count",
    "flops",
    "interval",
    "names",
    "number",
    "p_value",
    "percent",
    "point_interval",
    "points",
    "scientific",
    "seconds",
    "size",
]


def interval(value: Interval | None) -> str:
    """A share with its 95 % interval: ``71.3 % (68.0 to 74.4)``."""
    if value is None:
        return MISSING
    low, high = (percent(bound).removesuffix(" %") for bound in (value.low, value.high))
    return f"{percent(value.value)} ({low} to {high})"


def point_interval(value: Interval | None) -> str:
    """A difference with its 95 % interval: ``+4.1 (+1.0 to +7.2)``."""
    if value is None:
        return MISSING
    return f"{points(value.value)} ({points(value.low)} to {points(value.high)})"
