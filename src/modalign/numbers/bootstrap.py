"""The bootstrap: sums over records become sums over resampled records (Efron 1979).

Every statistic here is a function of sums over records: a mean is a sum over a count, a ratio is a sum over
a sum, a harmonic mean combines three means. So sums are resampled once for all statistics, and everything
computed from one replicate stays paired. Records with the same label (questions about one image) are
correlated and are resampled together (cluster bootstrap).

Intervals are *expanded percentiles* (Hesterberg 2015, Am. Stat. 69): plain percentiles of G resampled
units are too narrow, by the factor sqrt((G - 1) / G) and by a normal quantile instead of Student's. So the
2.5 % are replaced by Phi(-sqrt(G / (G - 1)) t), t the 97.5 % quantile of Student's distribution with G - 1
degrees of freedom: 1.6 % at G = 20, 2.5 % for large G. The ends stay within the statistic's own range.

``docs/report.md`` has the measured coverage; ``python -m bench.coverage`` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm
from scipy.stats import t as student

from modalign.numbers.estimate import Estimate

RESAMPLES = 2000
TAIL = 0.025  # share outside a 95 % interval on each side
_CHUNK = 4_000_000  # numbers drawn at a time

Floats = NDArray[np.float64]
Groups = Sequence[str | None]


def cluster_ids(groups: Groups | None, n: int) -> NDArray[np.intp]:
    """Number the groups of n records, (n,); a record without a label forms its own group."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items")
    known: dict[Any, int] = {}
    keys = ((index,) if group is None else group for index, group in enumerate(groups))
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.intp)


def cluster_sums(columns: Floats, groups: Groups | None = None) -> Floats:
    """Sum the rows of (n, K) within each group, (G, K)."""
    clusters = cluster_ids(groups, len(columns))
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.add.reduceat(columns[order], starts, axis=0)


def redraw(sums: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Resample groups with replacement and add up their sums.

    Args:
        sums: (G, K) of each group, as :func:`cluster_sums` gives them.
        resamples: R.
        seed: of the random generator.

    Returns:
        (1 + R, K): the sums of the sample itself, then those of the replicates.
    """
    count, rng = len(sums), np.random.default_rng(seed)
    drawn = np.empty((1 + resamples, sums.shape[1]))
    drawn[0] = sums.sum(axis=0)
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)
        drawn[1 + start : 1 + start + rows] = times.astype(np.float64) @ sums
    return drawn


def expanded_tail(units: int) -> float:
    """Return the share of replicates of G units outside a 95 % interval on each side."""
    if units < 2:
        return 0.0
    reach = np.sqrt(units / (units - 1)) * student.ppf(1 - TAIL, units - 1)
    return float(norm.sf(reach))


def estimate(
    drawn: Floats, n: int, *, units: int | None = None, scale: float = 1.0, **said: Any
) -> Estimate:
    """Make an estimate of a statistic's value and its replicates.

    Args:
        drawn: (1 + R,) the value first; undefined (NaN) replicates
            are ignored.
        n: sample size to report.
        units: G, number of resampled units; n by default.
        scale: factor of the value and the ends; 100 makes percent of shares.
        said: further fields of the estimate.
    """
    known = drawn[1:][np.isfinite(drawn[1:])]
    tail = expanded_tail(n if units is None else units)
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (drawn[0], drawn[0])
    kind = "bootstrap" if units in (None, n) else "clustered bootstrap"
    return Estimate(
        value=float(drawn[0]) * scale,
        low=float(low) * scale,
        high=float(high) * scale,
        n=n,
        **{"interval": kind, **said},
    )


def estimate_of_sums(
    columns: ArrayLike,
    combine: Callable[[Floats], Floats],
    *,
    n: int | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    **said: Any,
) -> Estimate | None:
    """Estimate a function of sums over records.

    Args:
        columns: (records, K) what is summed.
        combine: sums (R, K) -> values (R,); NaN if undefined.
        n: sample size to report; the number of records by default.
        groups: (records,) labels of records resampled together; None forms its own group.
        seed: of the random generator.
        resamples: R.
        said: further fields of the estimate.

    Returns:
        The estimate; None if it is undefined on the data themselves.
    """
    table = np.asarray(columns, dtype=np.float64)
    if not len(table):
        return None
    sums = cluster_sums(table, groups)
    drawn = combine(redraw(sums, resamples=resamples, seed=seed))
    if not np.isfinite(drawn[0]):
        return None
    kind = "bootstrap" if len(sums) == len(table) else "clustered bootstrap"
    given = len(table) if n is None else n
    return estimate(drawn, given, units=len(sums), **{"interval": kind, **said})


def ratio(sums: Floats) -> Floats:
    """Divide the first column by the second; NaN if that is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def redrawn_means(
    columns: Mapping[str, Floats], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Floats]:
    """Return means over records of several columns, observed and then resampled.

    Args:
        columns: name -> (n,), NaN for missing values.
        resamples: R, resampled jointly for all columns (combinations stay paired).
        seed: of the random generator.

    Returns:
        name -> (1 + R,); NaN if no record with a value was drawn.
    """
    table = np.stack(list(columns.values()), axis=1)
    known = ~np.isnan(table)
    sums = np.concatenate([np.where(known, table, 0.0), known], axis=1)
    drawn = redraw(sums, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = drawn[:, : len(columns)] / drawn[:, len(columns) :]
    return dict(zip(columns, means.T, strict=True))


def mean_of_few(values: ArrayLike, **said: Any) -> Estimate:
    """Estimate the mean of a few independent values by Student's t.

    For at least two draws or trainings, when there are too few to resample.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 2:
        raise ValueError(f"an interval by Student's t needs two values or more, got {n}")
    value = float(array.mean())
    reach = float(student.ppf(1 - TAIL, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Estimate(
        value=value, low=value - reach, high=value + reach, n=n, **{"interval": "student", **said}
    )


def median_of_few(values: ArrayLike, **said: Any) -> Estimate:
    """Estimate the median of a few independent values, such as times, whatever their distribution.

    The interval runs from the k-th smallest to the k-th largest value, k as large as 95 % allow: it covers the
    median with probability 1 - 2 P(Binomial(n, 1/2) < k). Below six values there is none.
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    n = len(array)
    k = int(binom.ppf(TAIL, n, 0.5))
    known = n >= 6
    low, high = (array[k - 1], array[n - k]) if known else (np.nan, np.nan)
    return Estimate(
        value=float(np.median(array)),
        low=float(low),
        high=float(high),
        n=n,
        **{"interval": "order statistics" if known else None, **said},
    )
