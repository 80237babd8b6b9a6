"""Pools of records by one statistic: pure functions of numbers and a seed.

Records are ranked by the statistic; equal values are ordered at random, by the seed. Records without a value are
in every pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modalign.errors import DataError
from modalign.numbers.bootstrap import Floats

LEVELS = ("low", "middle", "high")
Places = NDArray[np.intp]  # of records, ascending


def terciles(values: Floats, name: str, seed: int = 0) -> dict[str, Places]:
    """Cut records into thirds of equal size (within one) by a statistic, plus those without a value.

    Args:
        values: (n,) the statistic; NaN where it has no value.
        name: of the statistic, for the error.
        seed: of the order of equal values.

    Raises:
        DataError: fewer than three different values, so that a pool would be empty.
    """
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    if len(distinct) < len(LEVELS):
        said = ", ".join(f"{value:g}" for value in distinct) or "none"
        raise DataError(
            f"operator {name}: its statistic has fewer than three different values on these {len(values)} records "
            f"({said}), so a pool would be empty; leave it out"
        )
    order = ranking(values, seed)
    rest = unscored(values)
    cuts = np.round(np.arange(len(LEVELS) + 1) * len(order) / len(LEVELS)).astype(int)
    return {
        level: np.union1d(order[first:last], rest)
        for level, first, last in zip(LEVELS, cuts[:-1], cuts[1:], strict=True)
    }


def ranking(values: Floats, seed: int = 0) -> Places:
    """Return the places of records with a value, lowest first, equal values at random."""
    shuffled = np.random.default_rng(seed).permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    return order[np.isfinite(values[order])]


def unscored(values: Floats) -> Places:
    """Return the places of records without a value."""
    return np.flatnonzero(~np.isfinite(values))


def split_ties(values: Floats) -> float:
    """Return the share of valued records that equal the value at a cut, and are split by chance."""
    ordered = np.sort(values[np.isfinite(values)])
    cuts = np.round(np.arange(1, len(LEVELS)) * len(ordered) / len(LEVELS)).astype(int)
    split = {float(ordered[cut]) for cut in cuts if ordered[cut] == ordered[cut - 1]}
    return float(np.isin(ordered, sorted(split)).mean())


def distance_from(values: Floats, level: str) -> Floats:
    """(n,) how far a record is from the heart of a level: its highest, lowest or median value."""
    if level == "high":
        return -values
    return values if level == "low" else np.abs(values - np.nanmedian(values))


def best_share(values: Floats, level: str, share: float, seed: int = 0) -> Places:
    """Return the share of valued records that are nearest to a level, plus those without a value."""
    order = ranking(distance_from(values, level), seed)
    count = max(1, round(share * len(order)))
    return np.union1d(order[:count], unscored(values))


def random_share(values: Floats, share: float, seed: int) -> Places:
    """Return a random share of valued records, plus those without a value."""
    known = np.flatnonzero(np.isfinite(values))
    drawn = np.random.default_rng((seed, 7)).permutation(known)
    return np.union1d(drawn[: max(1, round(share * len(known)))], unscored(values))


def shared(pools: Sequence[Places]) -> Places:
    """Return the places that all pools have."""
    found = pools[0]
    for pool in pools[1:]:
        found = np.intersect1d(found, pool)
    return found
