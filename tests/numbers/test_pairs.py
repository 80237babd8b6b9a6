"""Paired differences: against an exact permutation test, Holm's own properties, and the verdict."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import false_discovery_control, permutation_test, ttest_ind, ttest_rel
from scipy.stats import t as student

from modalign.numbers.bootstrap import redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import (
    compare_all,
    compare_with,
    differences,
    holm,
    p_value,
    resamples_for,
    sample_replicates,
    verdict,
)
from modalign.numbers.replicates import Part, Replicates, Spread
from modalign.numbers.trainings import hierarchical_bootstrap

p_values = some.lists(some.floats(0, 1), max_size=12)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 -> x4 .02, x3 .03, x2 .06, x1 .04 raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(p_values)
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(given_p: list[float]) -> None:
    found = holm(given_p)
    for p, corrected in zip(given_p, found, strict=True):
        assert p <= corrected <= min(1.0, len(given_p) * p) + 1e-12
    for one, other in combinations(range(len(given_p)), 2):
        if given_p[one] < given_p[other]:
            assert found[one] <= found[other]


@given(p_values, some.randoms())
def test_holm_does_not_depend_on_the_order(given_p: list[float], random: object) -> None:
    order = list(range(len(given_p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = holm([given_p[place] for place in order])
    assert sorted(shuffled) == pytest.approx(sorted(holm(given_p)))


@given(some.lists(some.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_stricter_than_the_false_discovery_rate(given_p: list[float]) -> None:
    assert (np.array(holm(given_p)) >= false_discovery_control(given_p) - 1e-12).all()


def test_p_value_by_hand() -> None:
    parts = {
        "a": Part(0.0, np.array([0.1, 0.2, 0.3, -0.1]), np.zeros(4)),
        "b": Part(0.0, np.zeros(4), np.zeros(4)),
    }
    drawn = Replicates(parts, 10, 10)
    assert p_value(drawn, "a", "b") == pytest.approx(2 * (1 + 1) / 5)
    assert p_value(drawn, "a", "b") == p_value(drawn, "b", "a")


def test_p_values_are_those_of_the_exact_permutation_test() -> None:
    """Signs of paired differences are changed in all 2^n ways; a bootstrap of means must come near."""
    for seed, shift in ((0, 0.3), (1, 0.5), (2, 0.8), (3, 0.0)):
        rng = np.random.default_rng(seed)
        one = rng.normal(shift, 1, 14)
        other = rng.normal(0, 0.5, 14)
        exact = permutation_test(
            (one, other),
            lambda a, b: np.mean(a - b),
            permutation_type="samples",
            n_resamples=np.inf,
        ).pvalue
        drawn = sample_replicates(redrawn_means({"one": one, "other": other}, 20_000, seed), 14)
        assert p_value(drawn, "one", "other") == pytest.approx(exact, abs=0.03)


def test_p_values_of_few_trainings_are_students() -> None:
    """Questions that tell nothing apart: Welch's test over three trainings each."""
    accuracy = {"a": [0.70, 0.75, 0.72], "b": [0.62, 0.66, 0.61]}
    answers = {name: np.repeat(np.array(p)[:, None], 2000, axis=1) for name, p in accuracy.items()}
    for rows in answers.values():
        rows[:, :2] = [0, 1]  # what an answer is worth at least and at most
    drawn = hierarchical_bootstrap(answers, resamples=20_000)
    theirs = ttest_ind(accuracy["a"], accuracy["b"], equal_var=False)
    (found,) = differences(drawn)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.3)
    ends = theirs.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(ends), abs=6e-3)


def test_pairing_finds_what_the_parts_do_not() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 1, 40)
    one, other = hard + 0.2, hard + rng.normal(0, 0.2, 40)
    drawn = sample_replicates(redrawn_means({"a": one, "b": other}, 20_000, 0), 40)
    assert p_value(drawn, "a", "b") == pytest.approx(ttest_rel(one, other).pvalue, abs=0.002)
    assert differences(drawn)[0].verdict == "first"


def test_resamples_are_enough_for_holm_among_all_pairs() -> None:
    assert resamples_for(2) == 2000
    pairs = 18 * 17 // 2
    assert 2 / (resamples_for(18) + 1) * pairs < 0.05 / 1.5


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.2, 0.04, "first"),
        (-0.2, -0.01, 0.04, "second"),
        (0.01, 0.2, 0.05, "no difference found"),  # the corrected p does not call it
        (-0.01, 0.2, 0.04, "no difference found"),  # the interval holds zero
        (0.0, 0.2, 0.04, "no difference found"),
        (float("nan"), float("nan"), 0.0, "no difference found"),
    ],
)
def test_a_verdict_needs_both(low: float, high: float, p: float, expected: str) -> None:
    difference = Estimate(value=(low + high) / 2, low=low, high=high, n=9)
    assert verdict(difference, p) == expected


def test_few_records_are_sure_of_nothing() -> None:
    """Four records that agree: changing signs gives 2^-3 at best."""
    drawn = sample_replicates(redrawn_means({"a": np.ones(4), "b": np.zeros(4)}), 4)
    (found,) = differences(drawn)
    assert found.p_value == 2.0**-3
    assert found.verdict == "no difference found"


def test_groups_count_for_the_floor() -> None:
    """Forty questions about four images are four independent differences, not forty."""
    answers = {"a": np.ones((1, 40)), "b": np.zeros((1, 40))}
    groups = [str(place // 10) for place in range(40)]
    assert compare_all(answers, groups=groups)[0].p_value == 2.0**-3
    assert compare_all(answers)[0].verdict == "first"


def test_compare_all_is_every_pair() -> None:
    rng = np.random.default_rng(0)
    skill = (("a", 0.9), ("b", 0.2), ("c", 0.9))
    answers = {name: rng.random((3, 200)) < p for name, p in skill}
    found = {(d.first, d.second): d for d in compare_all(answers)}
    assert found[("a", "b")].verdict == "first"
    assert found[("b", "c")].verdict == "second"
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found[("a", "b")].difference.unit == "difference of shares"
    assert found[("a", "b")].difference.trainings == 3
    assert compare_all({"a": answers["a"]}) == []


def test_a_fixed_row_has_no_spread_of_its_own() -> None:
    rng = np.random.default_rng(1)
    majority = (rng.random(300) < 0.5).astype(float)
    good, same = (rng.random((3, 300)) < 0.8).astype(float), majority[None]
    found = {d.first: d for d in compare_with("majority", majority, {"good": good, "same": same})}
    assert found["good"].verdict == "first"
    assert found["good"].difference.value == pytest.approx(good.mean() - majority.mean())
    assert found["same"].verdict == "no difference found"


@settings(max_examples=20, deadline=None)
@given(some.integers(0, 10_000))
def test_the_first_minus_the_second_is_minus_the_second_minus_the_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = {name: rng.random((2, 30)) for name in "ab"}
    drawn = hierarchical_bootstrap(answers, resamples=500, seed=seed)
    (one,), (other,) = differences(drawn, [("a", "b")]), differences(drawn, [("b", "a")])
    assert one.p_value == other.p_value
    assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.difference.low == pytest.approx(-other.difference.high)


def test_spreads_of_few_trainings_lower_the_degrees_of_freedom() -> None:
    questions, luck = np.random.default_rng(0).normal(0, 2, (2, 4000))
    plain = Replicates({"a": Part(0.0, questions, 0 * luck)}, 1000, 1000)
    shaky = Replicates({"a": Part(0.0, 0 * questions, luck, spread=Spread(4.0, 2))}, 1000, 1000)
    both = Replicates({"a": Part(0.0, questions, luck, spread=Spread(4.0, 2))}, 1000, 1000)
    assert plain.of("a").freedom == pytest.approx(999, rel=0.01)
    assert shaky.of("a").freedom == pytest.approx(2)
    # halfway between the squares of 1.96 and 4.30
    reach = student.ppf(0.975, both.of("a").freedom)
    assert reach == pytest.approx(np.sqrt((1.962**2 + 4.303**2) / 2), rel=0.03)


def test_a_difference_without_any_spread_lies_within_its_interval() -> None:
    """All wrong against an even guess of two: every replicate differs by half."""
    (found,) = compare_with("chance", np.full(20, 0.5), {"a": np.zeros((2, 20))})
    assert (found.difference.value, found.difference.low, found.difference.high) == (-0.5,) * 3
    assert found.verdict == "second"
