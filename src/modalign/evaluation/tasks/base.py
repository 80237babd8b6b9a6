"""The base of evaluation tasks: accepted records, prompts and scoring.

A task never sees a model, only records and outputs. So the same scorer judges the right media, blank ones,
other records' media, and reference rows without a model (such as the most frequent answer).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from modalign.data.records import Record
from modalign.errors import DataError, UsageError, extra, grouped
from modalign.evaluation.guessing import BlindGuess
from modalign.numbers.bootstrap import Groups, estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate
from modalign.numbers.shares import share

MOST_FREQUENT = "most frequent answer here"  # compare's majority answer is of the training data
CHANCE = "chance"
SHOWN = 10  # records named in one error


@dataclass(frozen=True)
class OptionScore:
    """The summed log-likelihood of an offered option's tokens, and their number."""

    text: str
    loglikelihood: float
    tokens: int


@dataclass(frozen=True)
class Output:
    """A model's output: generated text, or the likelihood of every offered option."""

    text: str = ""
    options: tuple[OptionScore, ...] = ()


@dataclass(frozen=True)
class Score:
    """One record's score.

    Attributes:
        value: the score; its meaning depends on the task.
        normalised: the output as it was compared.
        counts: further numbers for the task's measures.
    """

    value: float
    normalised: str
    counts: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A task; subclasses are listed in ``modalign.evaluation.tasks``.

    Attributes:
        name: exact name on the command line.
        version: increases whenever scores of the same output change.
        headline: the measure compared with the reference rows.
        guessed: the measures compared with chance.
        lower_is_better: whether less is better.
        by_likelihood: options are scored by likelihood and nothing is generated.
        per_question: every question has a score of its own (:meth:`quality`), for comparisons.
        needs: modules required from the extra ``metrics``.
        advice: what to do about records that the task cannot use.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"
    guessed: ClassVar[tuple[str, ...]] = ("accuracy",)
    lower_is_better: ClassVar[bool] = False
    by_likelihood: ClassVar[bool] = False
    per_question: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = ""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        missing = [name for name in self.needs if not _can_import(name)]
        if missing:
            raise UsageError(
                f"task {self.name} needs {', '.join(missing)}, which cannot be imported: "
                f"{extra('metrics')}"
            )

    def check(self, records: Sequence[Record]) -> None:
        """Check that every record has what the task needs.

        Raises:
            DataError: names file, row and problem of the first ten, and how many there are.
        """
        found = [(str(r.source), words) for r in records if (words := self.problem(r)) is not None]
        if not found:
            return
        lines = "\n  ".join(grouped(found, SHOWN))
        raise DataError(
            f"task {self.name} cannot use {len(found)} of {len(records)} records:\n  {lines}\n{self.advice}"
        )

    def problem(self, record: Record) -> str | None:
        """Return why this task cannot use a record, or None."""
        return None

    def asked(self, record: Record) -> Record:
        """Return the record as the model is asked it."""
        return record

    def offered(self, record: Record) -> tuple[str, ...]:
        """Return the options to score by likelihood, in the order shown."""
        return record.options

    def score(self, records: Sequence[Record], outputs: Sequence[Output]) -> list[Score]:
        """Score every record's output, each by :meth:`score_one` unless the task needs all at once."""
        return [self.score_one(r, o) for r, o in zip(records, outputs, strict=True)]

    def score_one(self, record: Record, output: Output) -> Score:
        """Score one record's output."""
        raise NotImplementedError

    @abstractmethod
    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Return all measures over some records' scores, without undefined ones."""

    def quality(self, score: Score) -> float:
        """Return how good an answer is, 0 to 1, where :attr:`per_question`."""
        return score.value

    def said(self, record: Record, text: str) -> Output:
        """Return what a model would have put out that gave this answer."""
        return Output(text)

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Return reference rows: name -> outputs. By default the most frequent answer per skill."""
        return {MOST_FREQUENT: most_frequent_outputs(records)}

    def chance(self, records: Sequence[Record], guess: BlindGuess) -> Sequence[float | None] | None:
        """Return (n,) expected scores of a blind guesser; None if unknown or undefined."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return further settings needed to reproduce the scores."""
        return {}

    def notes(self) -> list[str]:
        """Return remarks to show with the scores."""
        return []

    def share(self, scores: Sequence[Score], groups: Groups) -> Estimate:
        """Return the share of scores that are 1, with a Wilson interval."""
        return share([score.value == 1 for score in scores], groups)

    def mean(self, scores: Sequence[Score], groups: Groups, unit: str = "share") -> Estimate:
        """Return the mean score with a bootstrap interval."""
        columns = np.array([[score.value, 1.0] for score in scores])
        found = estimate_of_sums(columns, ratio, groups=groups, unit=unit, seed=self.seed)
        assert found is not None
        return found

    def of_counts(
        self, scores: Sequence[Score], above: Sequence[str], below: Sequence[str], groups: Groups
    ) -> Estimate | None:
        """Return the ratio of the sums of some counts to those of others, with a bootstrap interval.

        ``n`` is the denominator. None if it is zero.
        """
        columns = np.array(
            [
                [sum(score.counts[k] for k in above), sum(score.counts[k] for k in below)]
                for score in scores
            ],
            dtype=float,
        )
        n = int(columns[:, 1].sum())
        return estimate_of_sums(columns, ratio, n=n, groups=groups, seed=self.seed)


def most_frequent_outputs(records: Sequence[Record]) -> list[Output]:
    """Answer every record with its skill's most frequent answer in these data."""
    counts: dict[str | None, Counter[str]] = {}
    for record in records:
        counts.setdefault(record.skill, Counter())[record.answer] += 1
    common = {skill: found.most_common(1)[0][0] for skill, found in counts.items()}
    return [Output(common[record.skill]) for record in records]


def groups_of(records: Sequence[Record]) -> list[str | None]:
    """Label questions by medium, so that the bootstrap resamples them together."""
    return [
        record.group or next((medium.label for medium in record.media()), None)
        for record in records
    ]


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
