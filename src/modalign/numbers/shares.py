"""Shares of records with Wilson's interval, corrected for clustering."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from scipy.stats import t as student

from modalign.numbers.bootstrap import TAIL, Floats, Groups, cluster_sums
from modalign.numbers.estimate import Estimate


def share(flags: ArrayLike, groups: Groups | None = None, *, over: str = "records") -> Estimate:
    """Estimate the share of records whose flag is 1, with its score interval (Wilson 1927).

    Dependent records carry less information: n is divided by the design effect (the variance over groups by that
    of independent records, Kish 1965) and, for few groups, by the squared ratio of Student's to the normal
    quantile (Korn and Graubard 1998). If all flags are equal, n is the number of groups.

    Args:
        flags: (n,) 0 or 1, at least one record.
        groups: (n,) labels of dependent records; None forms its own group.
        over: the kind of record.
    """
    values = np.asarray(flags, dtype=np.float64)
    n = len(values)
    value = float(values.mean())
    effective = _effective(values, groups)
    z2 = float(norm.ppf(1 - TAIL)) ** 2
    middle = (value + z2 / (2 * effective)) / (1 + z2 / effective)
    spread = value * (1 - value) / effective + z2 / (4 * effective**2)
    half = float(np.sqrt(z2 * spread)) / (1 + z2 / effective)
    return Estimate(
        value=value,
        low=0.0 if value == 0 else middle - half,
        high=1.0 if value == 1 else middle + half,
        n=n,
        over=over,
        interval="wilson",
    )


def _effective(values: Floats, groups: Groups | None) -> float:
    """Return the number of independent records with the same information."""
    n, mean = len(values), values.mean()
    sums = cluster_sums(np.stack([values - mean, np.ones(n)], axis=1), groups)
    count = len(sums)
    if count == n:
        return float(n)
    if count == 1:
        return 1.0
    few = (norm.ppf(1 - TAIL) / student.ppf(1 - TAIL, count - 1)) ** 2
    independent = mean * (1 - mean) / n
    if independent == 0:
        return float(count * few)
    variance = count / (count - 1) * float((sums[:, 0] ** 2).sum()) / n**2
    return float(few * n / max(variance / independent, 1.0))
