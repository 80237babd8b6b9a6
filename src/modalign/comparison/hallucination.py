"""Hallucination on questions of yes and no: POPE's measures (Li et al. 2023, arXiv 2305.10355).

``yes`` is the positive class. As everywhere in a comparison an answer is right when it is exactly the
expected one; "yes" is said when the answer begins with it. An answer that is neither yes nor no is
wrong and stays in every denominator.

Precision, recall and F1 are ratios of sums over questions. Their intervals come from the ratio's
linearisation (Woodruff 1971, J. Am. Stat. Assoc. 66): a question's share in ``r = sum(a) / sum(b)`` is
``r + (a - r b) / mean(b)``, whose mean is r, and which the hierarchical bootstrap redraws by seed and
image as it does accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.comparison.results import Difference, Hallucination, YesNo
from modalign.comparison.statistics import compare_all, mean_interval
from modalign.data.supervision import Sample
from modalign.numbers.estimate import Estimate

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
        accuracy=mean_interval(correct, groups=groups),
        precision=_ratio(hit, claimed, groups),
        recall=_ratio(hit, expected, groups),
        f1=_ratio(2 * hit, claimed + expected, groups),
        yes_rate=mean_interval(claimed, groups=groups),
    )


def _ratio(above: np.ndarray, below: np.ndarray, groups: Sequence[str | None]) -> Estimate | None:
    """Sum over sum with its interval; ``n`` counts the questions below, the mean over seeds."""
    mean = float(below.mean())
    if not mean:
        return None
    value = float(above.mean()) / mean
    found = mean_interval(value + (above - value * below) / mean, groups=groups)
    return Estimate(
        value=value,
        low=max(0.0, found.low),
        high=min(1.0, found.high),
        n=round(float((below > 0).sum(axis=1).mean())),
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
    majority = majority[None]
    says_yes = np.where(majority > 0, yes, 1 - yes)  # of an answer that is yes or no in any case
    pairs = compare_all(correct, groups=questions.groups) if len(correct) > 1 else []
    behind = [
        name
        for name, answers in correct.items()
        if mean_interval(answers - majority, groups=questions.groups).low <= 0
    ]
    return Hallucination(
        skills=questions.skills,
        n=len(questions.places),
        positives=int(questions.expected.sum()),
        references={
            ALWAYS_YES: measure(questions, yes, np.ones_like(yes)),
            MAJORITY: measure(questions, majority, says_yes),
        },
        differences=pairs,
        verdict=" ".join([*_between(pairs), *_against_majority(behind, correct)]),
    )


def _between(pairs: Sequence[Difference]) -> list[str]:
    if not pairs:
        return []
    told = [pair for pair in pairs if pair.verdict != "no difference found"]
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
