"""Intervals of measures: Wilson's formula, and a bootstrap that keeps groups together."""

from __future__ import annotations

import numpy as np
import pytest

from modalign.evaluation.intervals import bootstrap, exactly, ratio, share


def test_wilson_interval_of_none_and_all() -> None:
    assert share(0, 10).low == 0
    assert share(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert share(10, 10).low == pytest.approx(0.7225, abs=1e-4)


@pytest.mark.parametrize(("right", "n"), [(1, 7), (30, 50), (999, 1000)])
def test_wilson_interval_is_the_formula(right: int, n: int) -> None:
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = share(right, n)
    assert (found.value, found.n, found.interval) == (p, n, "wilson")
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_the_bootstrap_of_a_mean_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(5, 2, 900)
    columns = np.stack([values, np.ones(900)], axis=1)
    found = bootstrap(columns, ratio, n=900, groups=[None] * 900, resamples=4000)
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 30
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_groups_are_redrawn_whole() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=100), 9)  # nine copies tell nothing new
    columns = np.stack([values, np.ones(900)], axis=1)
    grouped = [f"image {place // 9}" for place in range(900)]
    together = bootstrap(columns, ratio, n=900, groups=grouped)
    apart = bootstrap(columns, ratio, n=900, groups=[None] * 900)
    assert together is not None
    assert apart is not None
    width, narrow = together.high - together.low, apart.high - apart.low
    assert width == pytest.approx(3 * narrow, rel=0.15)


def test_it_is_the_same_again_and_another_with_another_seed() -> None:
    columns = np.stack([np.arange(20.0), np.ones(20)], axis=1)
    drawn = [bootstrap(columns, ratio, n=20, groups=[None] * 20, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_not_defined_is_no_measure() -> None:
    assert bootstrap(np.zeros((4, 2)), ratio, n=4, groups=[None] * 4) is None


def test_what_is_known_has_no_width() -> None:
    chance = exactly(0.25, 12)
    assert chance.low == chance.value == chance.high
    assert chance.interval == "exact"
