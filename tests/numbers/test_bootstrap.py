"""The bootstrap: against SciPy's, and groups are kept together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from modalign.numbers.bootstrap import (
    cluster_ids,
    estimate_of_sums,
    expanded_tail,
    mean_of_few,
    median_of_few,
    ratio,
    redrawn_means,
)
from modalign.numbers.estimate import Estimate, exactly


def test_the_bootstrap_of_a_mean_has_the_normal_width() -> None:
    values = np.random.default_rng(0).normal(5, 2, 900)
    columns = np.stack([values, np.ones(900)], axis=1)
    found = estimate_of_sums(columns, ratio, n=900, groups=[None] * 900, resamples=4000)
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 30
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_groups_are_redrawn_whole() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=100), 9)  # nine copies tell nothing new
    columns = np.stack([values, np.ones(900)], axis=1)
    grouped = [f"image {place // 9}" for place in range(900)]
    together = estimate_of_sums(columns, ratio, n=900, groups=grouped)
    apart = estimate_of_sums(columns, ratio, n=900, groups=[None] * 900)
    assert together is not None
    assert apart is not None
    width, narrow = together.high - together.low, apart.high - apart.low
    assert width == pytest.approx(3 * narrow, rel=0.15)


def test_it_is_the_same_again_and_another_with_another_seed() -> None:
    columns = np.stack([np.arange(20.0), np.ones(20)], axis=1)
    drawn = [
        estimate_of_sums(columns, ratio, n=20, groups=[None] * 20, seed=seed) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_not_defined_is_no_measure() -> None:
    assert estimate_of_sums(np.zeros((4, 2)), ratio, n=4, groups=[None] * 4) is None


def test_what_is_known_has_no_width() -> None:
    chance = exactly(0.25, 12)
    assert chance.low == chance.value == chance.high
    assert chance.interval == "exact"


def test_percentiles_are_scipys() -> None:
    """Where the number of units is large the expanded percentile is the plain one."""
    values = np.random.default_rng(2).exponential(size=3000)
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1)
    found = estimate_of_sums(np.stack([values, np.ones(3000)], axis=1), ratio, resamples=4000)
    assert found is not None
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_expanded_percentiles_of_few_are_scipys_at_their_own_level() -> None:
    values = np.random.default_rng(3).normal(size=12)
    confidence = 1 - 2 * expanded_tail(12)
    theirs = scipy_bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=40_000,
        confidence_level=confidence,
        rng=1,
    )
    found = estimate_of_sums(
        np.stack([values, np.ones(12)], axis=1), ratio, resamples=40_000, seed=1
    )
    assert found is not None
    ends = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (found.low, found.high) == pytest.approx(ends, abs=0.03)
    # Nearly Student's interval, as it is meant to be.
    reach = student.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert found.high - found.value == pytest.approx(reach, rel=0.15)


def test_clusters_are_scipys_units() -> None:
    """The cluster bootstrap of a mean of equal groups is SciPy's bootstrap of the groups' means."""
    rng = np.random.default_rng(4)
    values = (rng.normal(size=(400, 1)) + rng.normal(size=(400, 5))).ravel()
    groups = [str(place // 5) for place in range(2000)]
    means = values.reshape(400, 5).mean(axis=1)
    theirs = scipy_bootstrap((means,), np.mean, method="percentile", n_resamples=8000, rng=0)
    found = estimate_of_sums(
        np.stack([values, np.ones(2000)], axis=1), ratio, groups=groups, resamples=8000
    )
    assert found is not None
    width = found.high - found.low
    assert found.interval == "clustered bootstrap"
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_a_ratio_of_sums_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    below = rng.integers(1, 9, 800).astype(float)
    above = rng.binomial(below.astype(int), 0.3).astype(float)
    theirs = scipy_bootstrap(
        (above, below),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=8000,
        rng=0,
    )
    found = estimate_of_sums(np.stack([above, below], axis=1), ratio, resamples=8000)
    assert found is not None
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_the_mean_of_few_is_students() -> None:
    found = mean_of_few([2.0, 3.0, 7.0])
    theirs = ttest_1samp([2.0, 3.0, 7.0], 0).confidence_interval()
    assert (found.value, found.n, found.interval) == (4.0, 3, "student")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    with pytest.raises(ValueError, match="two values"):
        mean_of_few([1.0])


@settings(max_examples=30, deadline=None)
@given(some.lists(some.floats(-5, 5), min_size=2, max_size=12), some.floats(0.1, 9))
def test_units_do_not_matter(values: list[float], factor: float) -> None:
    """An interval moves and stretches with the values."""
    one, other = (
        redrawn_means({"v": np.array(values) * scale + shift}, 200, 3)["v"]
        for scale, shift in ((1.0, 0.0), (factor, 7.0))
    )
    assert other == pytest.approx(one * factor + 7, abs=1e-8)


def test_columns_stay_paired() -> None:
    values = np.random.default_rng(6).normal(size=50)
    drawn = redrawn_means({"a": values, "b": values + 1}, 300, 0)
    assert drawn["b"] - drawn["a"] == pytest.approx(np.ones(301))


def test_what_a_record_does_not_have_is_left_out() -> None:
    drawn = redrawn_means({"a": np.array([1.0, np.nan, 3.0])}, 100, 0)["a"]
    assert drawn[0] == 2.0
    assert set(drawn[1:][~np.isnan(drawn[1:])]) <= {1.0, 3.0, 2.0, 5 / 3, 7 / 3}


def test_none_is_a_group_of_its_own() -> None:
    assert cluster_ids(["x", None, "x", None], 4).tolist() == [0, 1, 0, 2]


def test_an_estimate_without_an_interval_survives_json() -> None:
    alone = Estimate(value=1.0, n=3)
    again = Estimate.model_validate_json(alone.model_dump_json())
    assert not again.bounded
    assert again.sign == 0
    assert '"low":null' in alone.model_dump_json()


def test_a_median_of_few_has_the_binomial_interval() -> None:
    """Of nine values the second and the eighth: fewer than two lie below the median with P = 10 / 512."""
    found = median_of_few([9, 1, 8, 2, 7, 3, 6, 4, 5])
    assert (found.value, found.low, found.high) == (5, 2, 8)
    assert not median_of_few([1, 2, 3, 4, 5]).bounded  # min to max covers 93.75 % only
    rng = np.random.default_rng(0)
    draws = [median_of_few(rng.exponential(size=9)) for _ in range(2000)]
    covered = np.mean([each.low <= np.log(2) <= each.high for each in draws])
    assert covered == pytest.approx(1 - 2 * 10 / 512, abs=0.012)
