"""Spreads shared between methods: Student's distribution at one end, the moderated t at the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import t as student

from modalign.numbers.spreads import Spread, shared_spreads


def spreads(variances: object, trainings: list[int]) -> list[Spread]:
    found = shared_spreads(variances, trainings)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_one_method_alone_has_students_interval(count: int) -> None:
    (found,) = spreads([4.0], [count])
    assert found.reach == pytest.approx(2 * student.ppf(0.975, count - 1), rel=0.05)
    assert found.variance == pytest.approx(4.0, rel=0.07)


def test_many_methods_have_the_moderated_t() -> None:
    """Smyth 2004: with d_0 and s_0 known, d_0 + d degrees of freedom and the weighted variance."""
    rng, alike, usual, count = np.random.default_rng(0), 1, 3.0, 2000
    truth = alike * usual**2 / rng.chisquare(alike, count)
    seen = truth * rng.chisquare(1, count)
    found = spreads(seen, [2] * count)
    for place in np.argsort(seen)[[10, 500, 1000]]:
        variance = (alike * usual**2 + seen[place]) / (alike + 1)
        assert found[place].variance == pytest.approx(variance, rel=0.1)
        assert found[place].freedom == pytest.approx(alike + 1, rel=0.1)
    covered = rng.normal(size=count) * np.sqrt(truth / 2)
    reach = np.array([spread.over(2).reach for spread in found])
    assert (abs(covered) <= reach).mean() == pytest.approx(
        0.96, abs=0.015
    )  # never less than their own: above 95


@pytest.mark.parametrize("trainings", [1, 2, 3])
def test_spreads_tenfold_apart_are_covered(trainings: int) -> None:
    """Twelve methods, standard deviations from 1 to 10 evenly in logarithms: no prior of ours."""
    rng, hits, widths = np.random.default_rng(trainings), [], []
    deviations = np.geomspace(1, 10, 12)
    for _ in range(100):
        counts = rng.permutation([trainings] * 9 + [3] * 3)  # three methods at least show theirs
        draws = [rng.normal(0, d, count) for d, count in zip(deviations, counts, strict=True)]
        seen = [each.var(ddof=1) if len(each) > 1 else 0.0 for each in draws]
        found = spreads(seen, list(counts))
        reach = [spread.over(c).reach for spread, c in zip(found, counts, strict=True)]
        hits.append([abs(d.mean()) <= r for d, r in zip(draws, reach, strict=True)])
        widths.append(np.array(reach) / deviations * np.sqrt(counts))
    assert 0.91 <= np.mean(hits) <= 0.99
    if trainings > 1:  # one training cannot show that it is its method whose spread is largest
        assert np.min(np.mean(hits, axis=0)) >= 0.85
    if trainings == 2:  # Student's own are 12.7 and more standard errors long
        assert np.median(widths) < 5


@settings(max_examples=30, deadline=None)
@given(
    some.lists(some.tuples(some.floats(1e-6, 1e3), some.integers(1, 6)), min_size=1, max_size=6),
    some.floats(1e-3, 1e3),
)
def test_never_less_than_their_own_and_of_any_unit(
    methods: list[tuple[float, int]], unit: float
) -> None:
    variances, counts = [list(each) for each in zip(*methods, strict=True)]
    found = shared_spreads(variances, counts)
    if max(counts) == 1:
        assert found is None
        return
    assert found is not None
    scaled = spreads([unit * each for each in variances], counts)
    turned = spreads(variances[::-1], counts[::-1])[::-1]
    for seen, count, one, other, third in zip(
        variances, counts, found, scaled, turned, strict=True
    ):
        assert one.variance >= seen or count == 1
        assert other.variance == pytest.approx(unit * one.variance, rel=1e-6)
        assert third.variance == pytest.approx(one.variance, rel=1e-6)


def test_nothing_differs_and_nothing_is_known() -> None:
    assert shared_spreads([0.0, 0.0], [1, 3]) is None
    assert shared_spreads([9.0], [1]) is None


def test_more_methods_are_surer() -> None:
    reaches = [spreads([1.0] * count, [2] * count)[0].reach for count in (1, 2, 4, 12, 40)]
    assert reaches == sorted(reaches, reverse=True)
    assert reaches[0] / reaches[3] > 2.5
