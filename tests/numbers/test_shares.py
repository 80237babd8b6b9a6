"""Shares and their Wilson intervals, with and without records that stand or fall together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from modalign.numbers.shares import share


def flags(right: int, n: int) -> list[int]:
    return [1] * right + [0] * (n - right)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 7), (30, 50), (999, 1000)])
def test_the_interval_is_scipys(right: int, n: int) -> None:
    found, theirs = share(flags(right, n)), binomtest(right, n).proportion_ci(method="wilson")
    assert (found.value, found.n, found.interval) == (right / n, n, "wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_copies_tell_nothing_new() -> None:
    """Nine copies of each of 400 records: the interval of 400 records, but for Student's quantile."""
    once = np.random.default_rng(0).random(400) < 0.7
    groups = [f"image {place // 9}" for place in range(3600)]
    copied = share(np.repeat(once, 9), groups)
    alone = share(once)
    assert copied.value == alone.value
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=1e-3)
    assert copied.n == 3600


def test_groups_that_tell_more_than_their_number_are_not_trusted() -> None:
    """Every group holds one right and one wrong answer: the spread of sums is zero, the doubt is not."""
    groups = [str(place // 2) for place in range(200)]
    found = share([0, 1] * 100, groups)
    plain = share([0, 1] * 100)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=2e-3)


def test_where_all_are_right_groups_count() -> None:
    groups = [str(place // 10) for place in range(200)]
    assert share([1] * 200, groups).low < share([1] * 20).low
    assert share([1] * 200, groups).high == 1.0


def test_one_group_says_little() -> None:
    found = share([1, 0, 1, 1], ["a"] * 4)
    assert found.high - found.low > 0.7
