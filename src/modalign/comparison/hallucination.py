"""Hallucination on yes/no questions: POPE's measures (Li et al. 2023, arXiv 2305.10355).

``yes`` is the positive class. As elsewhere in a comparison, an answer must equal the expected one exactly to be
right; it says yes if it begins with "yes". Answers that are neither yes nor no are wrong and stay in every
denominator.

Precision, recall and F1 are ratios of sums over questions, whose intervals come from the ratio's linearisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.comparison.results import Hallucination, YesNo
from modalign.data.supervision import Sample
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE, Difference, compare_all, compare_with
from modalign.numbers.trainings import estimate_means, estimate_ratios

ALWAYS_YES, MAJORITY = "always yes", "majority answer"
TRUE = "share of true ones"


@dataclass(frozen=True)
class YesNoQuestions:
    """Questions whose expected answer is yes or no.

    Attributes:
        places: (n,) indices among all questions.
        expected: (n,) True if the answer is yes.
        groups: (n,) labels by image.
        skills: their skills, by name.
    """

    places: np.ndarray
    expected: np.ndarray
    groups: list[str | None]
    skills: list[str]


def yes_no_questions(
    samples: Sequence[Sample], groups: Sequence[str | None], seen: np.ndarray
) -> YesNoQuestions | None:
    """Select the yes/no questions; None unless both answers occur.

    Args:
        samples: all questions.
        groups: (n,) label of each one's image.
        seen: (n,) False for skills absent from training.
    """
    answers = [sample.record.answer.strip().casefold() for sample in samples]
    places = np.flatnonzero(np.isin(answers, ["yes", "no"]) & seen)
    expected = np.array([answers[place] == "yes" for place in places], dtype=bool)
    if not (expected.any() and not expected.all()):
        return None
    return YesNoQuestions(
        places,
        expected,
        [groups[place] for place in places.tolist()],
        sorted({samples[place].record.skill or "(no skill)" for place in places.tolist()}),
    )


def measure(
    questions: YesNoQuestions,
    correct: Mapping[str, np.ndarray],
    said_yes: Mapping[str, np.ndarray],
    fixed: Collection[str] = (),
) -> dict[str, YesNo]:
    """All measures of every method.

    Args:
        questions: the questions.
        correct: method -> (S, n) on these questions only, 1 for the right answer.
        said_yes: method -> (S, n) 1 if the answer begins with yes.
        fixed: methods without training.
    """
    expected = {
        name: np.broadcast_to(questions.expected, own.shape).astype(float)
        for name, own in correct.items()
    }
    hit = {name: own * expected[name] for name, own in correct.items()}
    claimed = _claimed(questions, correct, said_yes)
    both = {name: own + expected[name] for name, own in claimed.items()}
    found: dict[str, Mapping[str, Estimate | None]] = {
        "accuracy": estimate_means(correct, groups=questions.groups, fixed=fixed),
        "yes_rate": estimate_means(claimed, groups=questions.groups, fixed=fixed),
    }
    twice = {name: 2 * own for name, own in hit.items()}
    for measured, above, below in (
        ("precision", hit, claimed),
        ("recall", hit, expected),
        ("f1", twice, both),
    ):
        found[measured] = estimate_ratios(above, below, groups=questions.groups, fixed=fixed)
    return {
        name: YesNo(**{measured: each[name] for measured, each in found.items()})
        for name in correct
    }


def hallucination(
    questions: YesNoQuestions,
    correct: Mapping[str, np.ndarray],
    said_yes: Mapping[str, np.ndarray],
    majority: np.ndarray,
    fixed: Collection[str] = (),
) -> Hallucination:
    """Compute reference rows, differences between methods, and a verdict in words.

    Args:
        questions: the questions.
        correct: method -> (S, n) on these questions only.
        said_yes: method -> (S, n) 1 if the answer begins with yes.
        majority: (n,) 1 if the training data's most frequent answer to the question is right.
        fixed: methods without training.
    """
    yes, groups = questions.expected.astype(float), questions.groups
    says_yes = np.where(majority > 0, yes, 1 - yes)  # the majority answer is always yes or no
    pairs = compare_all(correct, groups=groups, fixed=fixed)
    against = compare_with(MAJORITY, majority, correct, groups=groups, fixed=fixed)
    rates = compare_with(
        TRUE, yes, _claimed(questions, correct, said_yes), groups=groups, fixed=fixed
    )
    behind = [pair.first for pair in against if pair.verdict != "first"]
    words = [*_between(pairs), *_against_majority(behind, correct), *_bias(rates)]
    given = {ALWAYS_YES: yes[None], MAJORITY: majority[None]}
    said = {ALWAYS_YES: np.ones_like(yes)[None], MAJORITY: says_yes[None]}
    return Hallucination(
        skills=questions.skills,
        n=len(questions.places),
        positives=int(questions.expected.sum()),
        references=measure(questions, given, said, fixed=given),
        differences=pairs,
        yes_rates=rates,
        verdict=" ".join(words),
    )


def _claimed(
    questions: YesNoQuestions, correct: Mapping[str, np.ndarray], said_yes: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return which answers say yes; a right answer does if yes is expected."""
    return {
        name: np.maximum(said_yes[name], own * questions.expected) for name, own in correct.items()
    }


def _bias(rates: Sequence[Difference]) -> list[str]:
    """Return which methods say yes too often or too rarely."""
    words = []
    for verdict, often in (("first", "too often"), ("second", "too seldom")):
        told = sorted(
            (pair for pair in rates if pair.verdict == verdict),
            key=lambda pair: -abs(pair.difference.value),
        )
        who = [f"{each.first} ({each.difference.value * 100:+.1f} points)" for each in told]
        if who:
            words.append(f"Yes is said {often} by {', '.join(who)}.")
    return words or ["No method is found to say yes more or less often than it is true."]


def _between(pairs: Sequence[Difference]) -> list[str]:
    if not pairs:
        return []
    told = [pair for pair in pairs if pair.verdict != NO_DIFFERENCE]
    count = f"{len(pairs)} pairs" if len(pairs) > 1 else "1 pair"
    if not told:
        least = min(pair.p_holm for pair in pairs)
        return [
            f"No two methods differ significantly in accuracy on these questions: of {count} the smallest "
            f"corrected p-value is {least:.2f}. A ranking by these figures alone would be by chance."
        ]
    words = []
    for pair in sorted(told, key=lambda pair: -abs(pair.difference.value))[:5]:
        better, worse = (pair.first, pair.second)
        if pair.verdict == "second":
            better, worse = worse, better
        words.append(f"{better} over {worse} by {abs(pair.difference.value) * 100:.1f} points")
    most = "" if len(told) <= len(words) else ", the largest"
    differ = "differs" if len(told) == 1 else "differ"
    return [f"{len(told)} of {count} {differ} significantly in accuracy{most}: {', '.join(words)}."]


def _against_majority(behind: Sequence[str], all_methods: Mapping[str, np.ndarray]) -> list[str]:
    if not behind:
        return ["Every method is better than the majority answer."]
    if len(behind) == len(all_methods):
        return ["No method is significantly better than the majority answer."]
    return [f"Not significantly better than the majority answer: {', '.join(behind)}."]
