"""Pools of records: what partitions, what is drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modalign.errors import DataError
from modalign.mixtures import pools

numbers = st.lists(
    st.one_of(st.integers(-3, 9).map(float), st.just(float("nan"))), min_size=3, max_size=40
).map(np.array)


@given(numbers, st.integers(0, 5))
def test_thirds_part_the_valued_records_by_value(values: np.ndarray, seed: int) -> None:
    known = np.flatnonzero(np.isfinite(values))
    assume(len(set(values[known].tolist())) >= 3)
    found = pools.terciles(values, "x", seed)
    rest = set(np.flatnonzero(np.isnan(values)).tolist())
    own = [set(found[level].tolist()) - rest for level in pools.LEVELS]
    assert all(rest <= set(found[level].tolist()) for level in pools.LEVELS)
    assert sorted(place for pool in own for place in pool) == known.tolist()
    sizes = [len(pool) for pool in own]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    low, middle, high = ([values[place] for place in pool] for pool in own)
    assert max(low) <= min(middle)
    assert max(middle) <= min(high)


@pytest.mark.parametrize("values", [[1.0] * 9, [1.0, 2.0] * 5, [np.nan] * 4])
def test_a_pool_that_would_be_empty_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"operator x: .*a pool would be empty"):
        pools.terciles(np.array(values), "x")


def test_equal_values_are_split_by_the_seed_and_counted() -> None:
    values = np.array([0.0, 1, 1, 1, 1, 2])  # cuts after 2 and 4 records, both among the ones
    assert pools.split_ties(values) == 4 / 6
    assert pools.split_ties(np.arange(6.0)) == 0
    lows = {tuple(pools.terciles(values, "x", seed)["low"].tolist()) for seed in range(20)}
    assert len(lows) > 1
    assert all(0 in low for low in lows)


@pytest.mark.parametrize(
    ("level", "expected"), [("high", [4, 5]), ("low", [0, 1]), ("middle", [2, 3])]
)
def test_the_best_share_lies_at_its_level(level: str, expected: list[int]) -> None:
    values = np.array([0.0, 1, 5, 6, 10, 11, np.nan])
    assert pools.best_share(values, level, 1 / 3).tolist() == [*expected, 6]


def test_random_shares_differ_by_seed_and_keep_what_has_no_value() -> None:
    values = np.array([*range(30), np.nan])
    found = [pools.random_share(values, 1 / 3, seed) for seed in range(3)]
    assert all(len(places) == 11 and places[-1] == 30 for places in found)
    assert len({places.tobytes() for places in found}) == 3


def test_what_pools_share() -> None:
    assert pools.shared([np.array([1, 2, 3]), np.array([2, 3, 4]), np.array([3, 9])]).tolist() == [
        3
    ]
