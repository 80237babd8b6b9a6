"""95 % intervals over labelled records: bootstrap for means, delete-a-group jackknife for everything else.

A bootstrap sample contains records twice. A mean is not affected; but duplicated records are each
other's nearest neighbours, add to an off-diagonal kernel, and shrink a covariance. So statistics that are
not means are recomputed without each of G groups of records in turn (Quenouille 1956, Tukey 1958; with
groups Kott 2001): s^2 = (G - 1) / G sum_g (theta_g - mean)^2, and the interval is theta +- t s with G - 1
degrees of freedom.

Both keep records about the same media together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from modalign.numbers.bootstrap import TAIL, Floats, estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate

GROUPS = 20

Integers = NDArray[np.int64]


class Sampling:
    """Records to resample, with labels of dependent ones.

    Args:
        labels: one per record; records with equal labels stay together.
        seed: of the random generator.
    """

    def __init__(self, labels: Sequence[str], seed: int) -> None:
        self.labels, self.seed, self.n = list(labels), seed, len(labels)

    def mean(self, values: Floats, unit: str = "", chance: float | None = None) -> Estimate:
        """Estimate the mean of (n,) values, ignoring NaN, by bootstrap."""
        places = np.flatnonzero(~np.isnan(values))
        columns = np.stack([values[places], np.ones(len(places))], axis=1)
        groups = [self.labels[place] for place in places]
        found = estimate_of_sums(
            columns, ratio, groups=groups, seed=self.seed, unit=unit, chance=chance
        )
        if found is None:
            raise ValueError("the mean of no values")
        return found

    def jackknife(
        self, statistic: Callable[[Integers], Floats], groups: int = GROUPS
    ) -> tuple[Floats, Floats]:
        """Find the lower and upper ends of a statistic of the records.

        Args:
            statistic: indices of the records kept -> (k,) values.
            groups: G, at most the number of labels.

        Returns:
            The ends, (k,) each; NaN if all records have the same label.
        """
        whole = np.asarray(statistic(np.arange(self.n)), dtype=float)
        _, label = np.unique(np.array(self.labels), return_inverse=True)
        order = np.random.default_rng(self.seed).permutation(label.max() + 1)
        count = min(groups, len(order))
        if count < 2:
            return np.full_like(whole, np.nan), np.full_like(whole, np.nan)
        group = (order % count)[label]  # sizes differ by at most one
        without = np.stack(
            [np.asarray(statistic(np.flatnonzero(group != g)), dtype=float) for g in range(count)]
        )
        variance = (count - 1) / count * ((without - without.mean(axis=0)) ** 2).sum(axis=0)
        reach = student.ppf(1 - TAIL, count - 1) * np.sqrt(variance)
        return whole - reach, whole + reach
