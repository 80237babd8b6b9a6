"""Larger budgets: power laws foretell themselves, crossings stand where they are, and doubt is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from modalign.comparison.planning import fall_of, plan, plan_budget
from modalign.comparison.results import CurvePoint, MethodResult, SeedRun, Trial
from modalign.errors import UsageError
from modalign.numbers.trainings import hierarchical_bootstrap

STEEP = 1.5  # logits of accuracy per e-fold of loss
FIRST, LAST = 2000, 15_000


def loss(samples: float, rate: float, level: float) -> float:
    return level * samples**-rate


def method(name: str, rate: float, level: float = 20.0) -> MethodResult:
    places = np.linspace(LAST / 8, LAST, 8)
    curve = [
        CurvePoint(
            samples=int(n),
            seconds=n / 100,
            flops=n * 1e8,
            val_loss=loss(n, rate, level),
            val_accuracy=float(expit(-STEEP * np.log(loss(n, rate, level)))),
        )
        for n in places
    ]
    run = SeedRun(seed=0, accuracy=0.5, val_loss=curve[-1].val_loss, val_accuracy=0.5,
                  samples=20_000, seconds=1.0, flops=1.0, curve=curve)  # fmt: skip
    trials = [
        Trial(
            learning_rate=lr,
            samples=FIRST,
            val_loss=loss(FIRST, rate, level) + worse,
            kept=not worse,
        )
        for lr, worse in ((1e-3, 0.0), (3e-3, 0.1))
    ]
    return MethodResult(name=name, family="converter", group="", variant="", enters="prefix",
                        papers=[], trials=trials, seeds=[run])  # fmt: skip


def validated(accuracies: dict[str, float], n: int = 4000, seeds: int = 2):
    rng = np.random.default_rng(0)
    answers = {
        name: np.array([rng.permutation(np.arange(n) < n * share) for _ in range(seeds)], float)
        for name, share in accuracies.items()
    }
    return hierarchical_bootstrap(answers)


def test_a_power_law_is_read_off_and_goes_on() -> None:
    methods = [method(name, 0.4 + step / 1000) for step, name in enumerate("abcd")]
    fall = fall_of(methods[0])
    assert fall is not None
    assert (fall.rate, np.exp(fall.after)) == (
        pytest.approx(0.4),
        pytest.approx(loss(LAST, 0.4, 20)),
    )
    drawn = validated(dict.fromkeys("abcd", 0.7))
    found = plan(methods, drawn, "20000samples", "160000samples")
    for each in found.methods:
        theirs = expit(logit(0.7) + STEEP * 0.4 * np.log(8))
        assert each.accuracy.value == pytest.approx(theirs, abs=0.02)
        assert each.past.value == pytest.approx(each.happened, rel=0.02)  # the others foretold it
    assert sum(each.best for each in found.methods) == pytest.approx(1)
    assert found.method is None  # four alike
    assert found.words.startswith("The curves cannot tell which method is best at 160,000 samples")
    assert found.words.endswith("at 60,000 samples would tell most.")


def test_who_is_far_ahead_and_no_slower_is_named() -> None:
    methods = [method("good", 0.42), *(method(name, 0.4 + i / 200) for i, name in enumerate("abc"))]
    drawn = validated({"good": 0.95, "a": 0.6, "b": 0.6, "c": 0.55})
    found = plan(methods, drawn, "20000samples", "30000samples")
    assert found.method == "good"
    assert found.methods[0].best > 0.95
    assert found.words.startswith("At 30,000 samples the best is foretold to be good, at ")
    assert found.crossings == []


def test_curves_cross_where_their_lines_do() -> None:
    """Rates alike but for one that is faster and behind: level where its gain has made up for its distance."""
    methods = [method("ahead", 0.30), method("behind", 0.40), method("third", 0.35)]
    drawn = validated({"ahead": 0.75, "behind": 0.72, "third": 0.3})
    found = plan(methods, drawn, "20000samples", "2000000samples")
    crossing = next(each for each in found.crossings if each.behind == "behind")
    pace = STEEP * (0.40 - 0.30) / 2  # half of a rate is its own
    place = 20_000 * np.exp((logit(0.75) - logit(0.72)) / pace)
    assert crossing.leader == "ahead"
    assert crossing.budget == pytest.approx(place, rel=0.1)
    assert 0.4 < crossing.probability < 1


def test_more_budget_is_less_sure() -> None:
    methods = [method(name, rate) for name, rate in (("a", 0.2), ("b", 0.4), ("c", 0.6))]
    drawn = validated({"a": 0.7, "b": 0.7, "c": 0.7})
    widths = []
    for target in ("40000samples", "160000samples"):
        (found,) = (
            each
            for each in plan(methods, drawn, "20000samples", target).methods
            if each.method == "b"
        )
        widths.append(logit(found.accuracy.high) - logit(found.accuracy.low))
    assert widths[1] > 2 * widths[0]


def test_too_few_curves_foretell_nothing() -> None:
    methods = [method("a", 0.4), method("b", 0.4), method("c", 0.4)]
    methods[2].trials = []  # its learning rate was given
    found = plan(methods, validated(dict.fromkeys("abc", 0.7)), "20000samples", "40000samples")
    assert (found.method, found.methods) == (None, [])
    assert "there are 2" in found.words


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("10000samples", "not larger"),
        ("1h", "counted in seconds"),
        ("much", "is invalid"),
    ],
)
def test_a_budget_that_cannot_be_planned_for_is_refused(target: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_budget(target, "20000samples")


def test_methods_that_have_hardly_begun_may_take_off() -> None:
    """Rates that are alike and next to nothing do not pass for knowledge of what comes."""
    methods = [method(name, 0.05) for name in "abcd"]
    drawn = validated({"a": 0.6, "b": 0.5, "c": 0.4, "d": 0.35})
    found = plan(methods, drawn, "5000samples", "40000samples")
    last = next(each for each in found.methods if each.method == "d")
    assert last.accuracy.high > 0.75
    assert found.method is None
