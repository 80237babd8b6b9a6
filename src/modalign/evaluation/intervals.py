"""Measures with 95 % intervals: Wilson's for shares, the bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel
from scipy.stats import binomtest

RESAMPLES = 1000
_CHUNK = 4_000_000  # drawn numbers held at a time

Unit = Literal["share", "points", "score"]
Combine = Callable[[np.ndarray], np.ndarray]  # (R, K) sums over records -> (R,) values


class Measure(BaseModel):
    """A figure with its 95 % interval.

    Attributes:
        value: of the data.
        low, high: ends of the interval.
        n: what it was taken over: records, or what the figure is a share of.
        interval: how the interval was found; ``exact`` for figures that are known, not estimated.
        unit: ``share`` (of 1), ``points`` (of 100) or ``score`` (no upper end that matters).
    """

    value: float
    low: float
    high: float
    n: int
    interval: Literal["wilson", "bootstrap", "exact"] = "wilson"
    unit: Unit = "share"


def share(right: int, n: int) -> Measure:
    """A share of ``n`` with its Wilson score interval (Wilson 1927); ``n`` is at least 1."""
    found = binomtest(right, n).proportion_ci(method="wilson")
    return Measure(value=right / n, low=float(found.low), high=float(found.high), n=n)


def exactly(value: float, n: int, unit: Unit = "share") -> Measure:
    """A figure that is known, such as chance."""
    return Measure(value=value, low=value, high=value, n=n, interval="exact", unit=unit)


def bootstrap(
    columns: np.ndarray,
    combine: Combine,
    *,
    n: int,
    groups: Sequence[str | None],
    unit: Unit = "share",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measure | None:
    """A function of sums over records, with its percentile interval (Efron 1979).

    Records of one group (questions about one image) are redrawn together.

    Args:
        columns: (records, K) what is summed.
        combine: sums (R, K) -> values (R,); NaN where it is not defined.
        n: reported beside it.
        groups: (records,) labels; None is a group of its own.
        unit: of the figure.
        seed: of the random generator.
        resamples: R.

    Returns:
        The measure; None where it is not defined on the data itself.
    """
    value = float(combine(columns.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        return None
    sums = _group_sums(columns, groups)
    drawn = np.concatenate([combine(part) for part in _redrawn(sums, resamples, seed)])
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (value, value)
    return Measure(
        value=value, low=float(low), high=float(high), n=n, interval="bootstrap", unit=unit
    )


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first column over the second; NaN where that is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def _group_sums(columns: np.ndarray, groups: Sequence[str | None]) -> np.ndarray:
    """(G, K) sums of each group's records."""
    known: dict[object, int] = {}
    keys = ((place,) if group is None else group for place, group in enumerate(groups))
    labels = np.array([known.setdefault(key, len(known)) for key in keys])
    sums = np.zeros((len(known), columns.shape[1]))
    np.add.at(sums, labels, columns)
    return sums


def _redrawn(sums: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Sums over redrawn groups, (R, K) in parts."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    step = max(1, _CHUNK // count)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)
        parts.append(times @ sums)
    return parts
