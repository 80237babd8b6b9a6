"""Hallucination on questions of yes and no: the table by hand, intervals by brute force, the words."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from modalign.comparison.hallucination import (
    ALWAYS_YES,
    MAJORITY,
    YesNoQuestions,
    hallucination,
    measure,
    yes_no_questions,
)
from modalign.comparison.results import YesNo
from modalign.data.supervision import Sample


def questions(expected: list[int]) -> YesNoQuestions:
    n = len(expected)
    return YesNoQuestions(np.arange(n), np.array(expected, bool), [None] * n, ["presence"])


def only(asked: YesNoQuestions, correct: np.ndarray, said_yes: np.ndarray) -> YesNo:
    return measure(asked, {"a": correct}, {"a": said_yes})["a"]


def says(asked: YesNoQuestions, correct: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of answers that are yes or no in any case."""
    return {name: np.where(asked.expected, own, 1 - own) for name, own in correct.items()}


def sample(answer: str, skill: str | None) -> Sample:
    from dataclasses import replace

    record = replace(tiny.record("is there a one?", answer), skill=skill)
    return Sample(record, np.zeros(3, np.int64), np.zeros(3, bool))


def test_measures_are_those_of_the_table_made_by_hand() -> None:
    # expected yes: right, right, "no", neither; expected no: right, "yes", neither
    asked = questions([1, 1, 1, 1, 0, 0, 0])
    correct = np.array([[1, 1, 0, 0, 1, 0, 0]], float)
    said_yes = np.array([[1, 1, 0, 0, 0, 1, 0]], float)
    found = only(asked, correct, said_yes)
    assert found.accuracy.value == pytest.approx(3 / 7)
    assert found.precision is not None
    assert found.recall is not None
    assert found.f1 is not None
    assert (found.precision.value, found.precision.n) == (pytest.approx(2 / 3), 3)
    assert (found.recall.value, found.recall.n) == (pytest.approx(2 / 4), 4)
    precision, recall = 2 / 3, 2 / 4
    assert found.f1.value == pytest.approx(2 * precision * recall / (precision + recall))
    assert found.yes_rate.value == pytest.approx(3 / 7)
    for each in (found.accuracy, found.precision, found.recall, found.f1, found.yes_rate):
        assert 0 <= each.low <= each.value <= each.high <= 1


def test_who_never_says_yes_has_no_precision() -> None:
    found = only(questions([1, 0]), np.array([[0.0, 1.0]]), np.zeros((1, 2)))
    assert found.precision is None
    assert found.recall is not None
    assert found.recall.value == 0


def test_intervals_are_those_of_redrawing_the_ratio_itself() -> None:
    rng = np.random.default_rng(0)
    expected = rng.random(400) < 0.5
    said_yes = np.where(expected, rng.random(400) < 0.8, rng.random(400) < 0.3)
    asked, correct = questions(expected.tolist()), (said_yes == expected)[None].astype(float)
    found = only(asked, correct, said_yes[None].astype(float))
    assert found.f1 is not None
    assert found.precision is not None
    drawn = rng.integers(400, size=(4000, 400))
    hit, claimed, real = (said_yes & expected)[drawn], said_yes[drawn], expected[drawn]
    for measured, values in (
        (found.precision, hit.sum(1) / claimed.sum(1)),
        (found.f1, 2 * hit.sum(1) / (claimed.sum(1) + real.sum(1))),
    ):
        low, high = np.percentile(values, [2.5, 97.5])
        assert (measured.low, measured.high) == pytest.approx((low, high), abs=0.01)


def test_seeds_widen_the_intervals() -> None:
    rng = np.random.default_rng(1)
    expected = np.arange(200) % 2 == 0
    asked = questions(expected.tolist())
    skill = np.array([[0.95], [0.6], [0.75]])
    correct = (rng.random((3, 200)) < skill).astype(float)
    said = np.where(expected, correct, 1 - correct)
    several, one = only(asked, correct, said), only(asked, correct[2:], said[2:])
    assert several.f1 is not None
    assert one.f1 is not None
    assert several.f1.high - several.f1.low > 1.5 * (one.f1.high - one.f1.low)


def test_questions_are_those_answered_yes_or_no_where_both_occur() -> None:
    samples = [
        sample("yes", "presence"),
        sample("two", "counting"),
        sample("No", None),
        sample("no", "next"),
    ]
    seen = np.array([True, True, True, False])
    found = yes_no_questions(samples, ["a", "b", "c", "d"], seen)
    assert found is not None
    assert found.places.tolist() == [0, 2]
    assert found.expected.tolist() == [True, False]
    assert found.groups == ["a", "c"]
    assert found.skills == ["(no skill)", "presence"]
    assert yes_no_questions(samples[:2], ["a", "b"], seen[:2]) is None


def test_nothing_significant_is_said() -> None:
    rng = np.random.default_rng(2)
    asked = questions((np.arange(60) % 2 == 0).tolist())
    correct = {name: (rng.random((1, 60)) < 0.5).astype(float) for name in ("a", "b", "c")}
    found = hallucination(asked, correct, says(asked, correct), np.ones(60) * (np.arange(60) % 2))
    assert found.verdict.startswith("No two methods differ significantly in accuracy")
    assert "of 3 pairs" in found.verdict
    assert "No method is significantly better than the majority answer." in found.verdict
    always = found.references[ALWAYS_YES]
    assert (always.accuracy.value, always.yes_rate.value) == (0.5, 1)
    assert always.recall is not None
    assert always.recall.value == 1
    majority = found.references[MAJORITY]  # always no
    assert (majority.accuracy.value, majority.yes_rate.value, majority.precision) == (0.5, 0, None)
    assert (found.n, found.positives) == (60, 30)


def test_what_differs_is_named() -> None:
    rng = np.random.default_rng(3)
    asked = questions((np.arange(200) % 2 == 0).tolist())
    correct = {
        "good": (rng.random((2, 200)) < 0.9).astype(float),
        "bad": (rng.random((2, 200)) < 0.5).astype(float),
    }
    found = hallucination(asked, correct, says(asked, correct), (np.arange(200) % 2).astype(float))
    assert found.verdict.startswith(
        "1 of 1 pair differs significantly in accuracy: good over bad by "
    )
    assert "Not significantly better than the majority answer: bad." in found.verdict


def test_one_method_has_nobody_to_differ_from() -> None:
    asked = questions([1, 0] * 50)
    correct = {"only": np.ones((1, 100))}
    found = hallucination(asked, correct, says(asked, correct), np.array([0.0, 1.0] * 50))
    assert found.differences == []
    assert found.verdict == (
        "Every method is better than the majority answer. "
        "No method is found to say yes more or less often than it is true."
    )


def test_a_bias_to_yes_is_judged_though_accuracies_are_alike() -> None:
    rng = np.random.default_rng(5)
    asked = questions((np.arange(400) % 2 == 0).tolist())
    said = {
        name: (rng.random((3, 400)) < share).astype(float)
        for name, share in (("even", 0.5), ("eager", 0.9), ("shy", 0.3))
    }
    correct = {name: np.where(asked.expected, own, 1 - own) for name, own in said.items()}
    found = hallucination(asked, correct, said, (np.arange(400) % 2).astype(float))
    told = {pair.first: pair.verdict for pair in found.yes_rates}
    assert told == {"even": "no difference found", "eager": "first", "shy": "second"}
    assert "Yes is said too often by eager (+" in found.verdict
    assert "Yes is said too seldom by shy (-" in found.verdict
    assert found.yes_rates[1].difference.value == pytest.approx(0.4, abs=0.05)
