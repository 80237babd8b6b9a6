"""Hallucination on questions of yes and no: POPE's measures (Li et al. 2023, arXiv 2305.10355).

``yes`` is the positive class. As everywhere in a comparison an answer is right when it is exactly the
expected one; "yes" is said when the answer begins with it. An answer that is neither yes nor no is
wrong and stays in every denominator.

Precision, recall and F1 are ratios of sums over questions, whose intervals come from the ratio's linearisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.comparison.results import Hallucination, YesNo
from modalign.data.supervision import Sample
from modalign.numbers.pairs import NO_DIFFERENCE, Difference, compare_all, compare_with
from modalign.numbers.trainings import estimate_mean, estimate_ratio

ALWAYS_YES, MAJORITY = "always yes", "majority answer"


@dataclass(frozen=True)
class YesNoQuestions:
    """The questions whose expected answer is yes or no.

    Attributes:
        places: (n,) where they stand among all questions.
        expected: (n,) True where the answer is yes.
        groups: (n,) questions about one image share a label.
        skills: their skills, by name.
    """

    places: np.ndarray
    expected: np.ndarray
    groups: list[str | None]
    skills: list[str]


def yes_no_questions(
    samples: Sequence[Sample], groups: Sequence[str | None], seen: np.ndarray
) -> YesNoQuestions | None:
    """The questions of yes and no; None unless both answers occur.

    Args:
        samples: everything that was asked.
        groups: (n,) label of each one's image.
        seen: (n,) False for skills that nobody trained on.
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


def measure(questions: YesNoQuestions, correct: np.ndarray, said_yes: np.ndarray) -> YesNo:
    """All measures of one method.

    Args:
        questions: what was asked.
        correct: (S, n) of these questions alone, 1 for the right answer.
        said_yes: (S, n) 1 where the answer begins with yes.
    """
    expected = np.broadcast_to(questions.expected, correct.shape).astype(float)
    hit, claimed = correct * expected, np.maximum(said_yes, correct * expected)
    groups = questions.groups
    return YesNo(
        accuracy=estimate_mean(correct, groups=groups),
        precision=estimate_ratio(hit, claimed, groups=groups),
        recall=estimate_ratio(hit, expected, groups=groups),
        f1=estimate_ratio(2 * hit, claimed + expected, groups=groups),
        yes_rate=estimate_mean(claimed, groups=groups),
    )


def hallucination(
    questions: YesNoQuestions,
    correct: Mapping[str, np.ndarray],
    majority: np.ndarray,
) -> Hallucination:
    """Reference rows, differences between methods, and what they come to in a sentence.

    Args:
        questions: what was asked.
        correct: method -> (S, n) of these questions alone.
        majority: (n,) 1 where the training data's most frequent answer to the skill is right.
    """
    yes = questions.expected[None].astype(float)
    says_yes = np.where(
        majority[None] > 0, yes, 1 - yes
    )  # of an answer that is yes or no in any case
    pairs = compare_all(correct, groups=questions.groups)
    against = compare_with(MAJORITY, majority, correct, groups=questions.groups)
    behind = [pair.first for pair in against if pair.verdict != "first"]
    return Hallucination(
        skills=questions.skills,
        n=len(questions.places),
        positives=int(questions.expected.sum()),
        references={
            ALWAYS_YES: measure(questions, yes, np.ones_like(yes)),
            MAJORITY: measure(questions, majority[None], says_yes),
        },
        differences=pairs,
        verdict=" ".join([*_between(pairs), *_against_majority(behind, correct)]),
    )


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
