"""Races of simulated methods whose truth is known: right as often as said, for less than equal shares cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modalign.comparison import compare
from modalign.comparison.config import CompareConfig
from modalign.comparison.job import Job, JobResult
from modalign.comparison.racing import (
    BEGINNING,
    ROUND,
    Standing,
    Total,
    luck_in_picks,
    next_round,
    race,
)
from modalign.comparison.recommendation import Cost, recommend, replicate_picks
from modalign.comparison.runner import Silent
from modalign.errors import UsageError
from modalign.numbers.replicates import Part, Replicates
from modalign.numbers.trainings import hierarchical_bootstrap

QUESTIONS, LUCK = 500, 0.03
RESAMPLES = 200


class Simulated:
    """Methods of known accuracy, the dearest first; a training of one is off by luck."""

    def __init__(self, truth: Mapping[str, float], seed: int) -> None:
        self.truth, self.rng = truth, np.random.default_rng(seed)
        self.hard = self.rng.random(QUESTIONS)
        self.answers: dict[str, list[np.ndarray]] = {name: [] for name in truth}
        self.said: list[str] = []

    def add(self, methods: Sequence[str]) -> None:
        for name in methods:
            level = self.truth[name] + self.rng.normal(0, LUCK)
            self.answers[name].append((self.hard + self.rng.normal(0, 0.1, QUESTIONS)) < level)

    def counts(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.answers.items()}

    def spent(self, kind: str, method: str | None = None) -> float:
        assert kind in ("trainings", "samples")
        counts = self.counts()
        number = sum(counts.values()) if method is None else counts[method]
        return float(number) * (1 if kind == "trainings" else 100)

    def standing(self) -> Standing:
        correct = {name: np.array(rows, dtype=float) for name, rows in self.answers.items()}
        costs = {name: Cost(1, -place, 1.0, 1.0) for place, name in enumerate(correct)}
        drawn = hierarchical_bootstrap(correct, resamples=RESAMPLES)
        found = recommend(correct, costs, drawn=drawn)
        doubt = luck_in_picks(drawn, replicate_picks(drawn, costs))
        return Standing(found.method, found.confidence, doubt)

    def tell(self, said: str) -> None:
        self.said.append(said)


TRUTH = {"a": 0.80, "b": 0.77, "c": 0.76, "d": 0.60, "e": 0.50, "f": 0.40}


def equal_shares(field: Simulated, total: int) -> int:
    """Trainings until the choice is as sure, everybody trained equally often."""
    field.add([*TRUTH] * BEGINNING)
    while (field.standing().confidence or 0) < 0.9 and field.spent("trainings") < total:
        field.add([*TRUTH])
    return int(field.spent("trainings"))


def test_the_best_is_found_as_often_as_said_and_for_less_than_equal_shares_cost() -> None:
    right, sure, spent, equal, counts = [], [], [], [], Counter[str]()
    for seed in range(12):
        field = Simulated(TRUTH, seed)
        found = race(field, list(TRUTH), 0.9, Total(40))
        last = found.rounds[-1]
        right.append(last.method == "a")
        sure.append(last.confidence or 0.0)
        spent.append(last.trainings)
        counts.update(field.counts())
        equal.append(equal_shares(Simulated(TRUTH, seed), 60))
        assert (found.stop == "sure enough") == ((last.confidence or 0) >= 0.9)
        assert field.said[-1] == found.words
    assert np.mean(right) >= np.mean(sure) - 0.15  # two standard errors of 12 races
    assert np.mean(spent) < 0.75 * np.mean(equal)
    worse = sum(counts[name] for name in "def")  # clearly so: hardly one is trained again
    assert worse <= 1.05 * BEGINNING * 12 * 3


def test_trainings_take_the_next_seed_of_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one in which nothing trains is run once."""
    ran: list[Job] = []

    def run_jobs(jobs: list[Job], *_: object, **__: object) -> dict[Job, JobResult]:
        ran.extend(jobs)
        return {job: JobResult(method=job.method, seed=job.seed) for job in jobs}

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    parts = {"llm": "l", "encoder": {"image": "e"}}
    config = CompareConfig.model_validate({"parts": parts, "data": {"train": "t"}, "seed": 2})
    still = {"tool": SimpleNamespace(trains=lambda _: False)}
    able = SimpleNamespace(trains=lambda _: True)
    prepared: Any = SimpleNamespace(
        config=config, out=Path("out"), cache=Path("cache"), method=lambda n: still.get(n, able)
    )
    nowhere: Any = None
    running = compare.Running(prepared, nowhere, Silent())
    running.add(["a", "tool", "a", "tool"])
    running.add(["a"])
    assert [job.key for job in ran] == [
        "a/seed-2000",
        "tool/seed-2000",
        "a/seed-2001",
        "a/seed-2002",
    ]
    assert [job.before for job in ran] == [None, None, ran[0], ran[0]]
    assert running.spent("trainings") == 4


def test_a_race_ends_at_its_total() -> None:
    even = {"a": 0.70, "b": 0.685}
    for total in (Total(5), Total(500, "samples")):
        field = Simulated(even, 3)
        found = race(field, list(even), 1.1, total)  # never so sure
        assert found.stop == "total spent"
        assert 5 <= found.rounds[-1].trainings <= 4 + ROUND
        assert f"the total of {total} was spent" in found.words
        assert found.words.startswith(f"Stopped after {found.rounds[-1].trainings} trainings: ")


def test_nothing_learnt_ends_it_after_the_beginning() -> None:
    class Unlearned(Simulated):
        def standing(self) -> Standing:
            return Standing(None, None, {})

    field = Unlearned(TRUTH, 0)
    found = race(field, list(TRUTH), 0.9, Total(40))
    assert (found.stop, found.rounds[-1].trainings) == ("nothing learnt", 12)
    assert "what needs no training" in found.words


def test_the_same_results_give_the_same_race() -> None:
    one, two = Simulated(TRUTH, 5), Simulated(TRUTH, 5)
    assert race(one, list(TRUTH), 0.95, Total(40)) == race(two, list(TRUTH), 0.95, Total(40))


def test_the_total_must_pay_for_the_beginning() -> None:
    with pytest.raises(
        UsageError, match=r"11 trainings is less than two for each of 6 methods: give 12"
    ):
        Total.of("11trainings", 6)
    assert Total.of("12trainings", 6) == Total(12)
    assert [Total.of(None, methods) for methods in (1, 6, 12)] == [Total(6), Total(16), Total(30)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), min_size=1),
    st.integers(0, ROUND),
    st.integers(1, 9),
)
def test_rounds_go_to_doubt_alone(doubt: dict[str, float], room: int, trained: int) -> None:
    counts = dict.fromkeys(doubt, trained)
    added = next_round(doubt, counts, room)
    assert len(added) == (room if any(doubt.values()) else 0)
    assert all(doubt[name] > 0 for name in added)
    if added:
        assert doubt[added[0]] == max(doubt.values())
    often = Counter(added)
    for name in often:  # no other training would have taken more doubt away at the end
        after = doubt[name] * trained / (trained + often[name] - 1) / (trained + often[name])
        for other, value in doubt.items():
            n = trained + often[other]
            assert value * trained / n / (n + 1) <= after * (1 + 1e-9)


def test_luck_in_picks_is_the_part_of_variance_that_luck_explains() -> None:
    """Two methods alike: with u the share of replicates in which a has less luck, P(a is picked) = u.

    So cov(1[a is picked], u) = E u^2 - 1/4 = 1/12 = var(u), and each luck explains 1/12 of each of the two
    indicators' variance of 1/4. What has nothing to do with the picks explains nothing.
    """
    rng = np.random.default_rng(0)
    luck = {name: rng.standard_t(2, 4000) for name in "abc"}
    drawn = Replicates({n: Part(0.0, np.zeros(4000), each) for n, each in luck.items()}, 1, 1)
    picks = ["a" if x > y else "b" for x, y in zip(luck["a"], luck["b"], strict=True)]
    found = luck_in_picks(drawn, picks)
    assert found["a"] == pytest.approx(1 / 6, rel=0.1)
    assert found["b"] == pytest.approx(1 / 6, rel=0.1)
    assert found["c"] == 0.0
    assert set(luck_in_picks(drawn, ["a"] * 4000).values()) == {0.0}


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("40trainings", Total(40)),
        ("1 training", Total(1)),
        ("10m", Total(600, "seconds")),
        ("5000samples", Total(5000, "samples")),
        ("2tflops", Total(2e12, "flops")),
    ],
)
def test_totals_are_read(text: str, total: Total) -> None:
    assert Total.parse(text) == total


@pytest.mark.parametrize("text", ["40", "many", "0trainings", "-3trainings", "trainings", ""])
def test_wrong_totals_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="total"):
        Total.parse(text)
