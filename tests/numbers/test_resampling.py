"""Intervals over records: against formulas, and what belongs together stays together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from modalign.numbers.sampling import Sampling


def alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    """Delete-one gives exactly the usual standard error of a mean."""
    values = np.random.default_rng(0).normal(size=15)
    sampling = Sampling(alone(15), 0)
    low, high = sampling.jackknife(lambda kept: np.array([values[kept].mean()]), groups=15)
    reach = student.ppf(0.975, 14) * values.std(ddof=1) / np.sqrt(15)
    assert low[0] == pytest.approx(values.mean() - reach)
    assert high[0] == pytest.approx(values.mean() + reach)


def test_records_of_one_medium_leave_together() -> None:
    seen: list[set[int]] = []

    def keep(kept: np.ndarray) -> np.ndarray:
        seen.append(set(kept.tolist()))
        return np.array([float(len(kept))])

    Sampling(["a", "a", "b", "b", "c", "c"], 0).jackknife(keep)
    assert sorted(map(sorted, seen[1:])) == [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]


def test_one_medium_has_no_interval() -> None:
    low, high = Sampling(["a"] * 5, 0).jackknife(lambda kept: np.array([1.0, 2.0]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_the_mean_leaves_out_what_is_not_known() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0, 1.0, np.nan])
    found = Sampling(alone(6), 0).mean(values, "share", 0.5)
    assert (found.value, found.n, found.unit, found.chance) == (0.75, 4, "share", 0.5)
    assert found.low is not None
    assert found.low <= 0.75 <= (found.high or 0)


def test_doubled_records_are_no_second_half() -> None:
    """Every record twice under one label: the interval is that of the records once."""
    values = np.random.default_rng(1).normal(size=40)
    once = Sampling(alone(40), 0).mean(values)
    twice = Sampling(alone(40) * 2, 0).mean(np.tile(values, 2))
    assert twice.low == pytest.approx(once.low)
    assert twice.high == pytest.approx(once.high)
