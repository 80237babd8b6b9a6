"""What an evaluation task is: which records it takes, what it asks, how it scores the answers.

A task never sees a model. It is given records and what was answered, so the same scorer judges the
right media, blank ones, somebody else's, and rows that no model made (the most frequent answer, say).
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

MOST_FREQUENT = (
    "most frequent answer here"  # in these data; compare's majority answer is the training data's
)
CHANCE = "chance"
SHOWN = 10  # records named in one error


@dataclass(frozen=True)
class OptionScore:
    """How likely one offered option is: the summed log-likelihood of its tokens, and their number."""

    text: str
    loglikelihood: float
    tokens: int


@dataclass(frozen=True)
class Output:
    """What was answered: a generated text, or the likelihood of every option offered."""

    text: str = ""
    options: tuple[OptionScore, ...] = ()


@dataclass(frozen=True)
class Score:
    """One record's score.

    Attributes:
        value: the score; its meaning is the task's.
        normalised: the output as it was compared.
        counts: whatever else the task's measures are made of.
    """

    value: float
    normalised: str
    counts: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A task; subclasses are listed in ``modalign.evaluation.tasks``.

    Attributes:
        name: exact name on the command line.
        version: raised whenever a score of the same output would change.
        headline: the measure that stands beside the reference rows.
        guessed: the measures that chance stands beside.
        lower_is_better: whether less is better.
        by_likelihood: options are scored by likelihood and nothing is generated.
        needs: libraries of the extra ``metrics`` by the module that is imported.
        advice: what to do about records that the task cannot use.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"
    guessed: ClassVar[tuple[str, ...]] = ("accuracy",)
    lower_is_better: ClassVar[bool] = False
    by_likelihood: ClassVar[bool] = False
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
        """Make sure that every record has what the task needs.

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
        """What is wrong with a record for this task, if anything."""
        return None

    def asked(self, record: Record) -> Record:
        """The record as it is put to the model."""
        return record

    def offered(self, record: Record) -> tuple[str, ...]:
        """The options whose likelihood is wanted, in the order shown."""
        return record.options

    def score(self, records: Sequence[Record], outputs: Sequence[Output]) -> list[Score]:
        """Score every record's output, each by :meth:`score_one` unless the task needs all at once."""
        return [self.score_one(r, o) for r, o in zip(records, outputs, strict=True)]

    def score_one(self, record: Record, output: Output) -> Score:
        """Score one record's output."""
        raise NotImplementedError

    @abstractmethod
    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """All measures over some records' scores; one that is not defined there is left out."""

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Reference rows that no model made: name -> outputs. Here the most frequent answer per skill."""
        return {MOST_FREQUENT: most_frequent_outputs(records)}

    def chance(self, records: Sequence[Record], guess: BlindGuess) -> Sequence[float | None] | None:
        """(n,) expected score of somebody blind; None where it is not known, or not defined at all."""
        return None

    def settings(self) -> dict[str, Any]:
        """What else must be known to repeat it."""
        return {}

    def notes(self) -> list[str]:
        """What must be said beside the scores."""
        return []

    def share(self, scores: Sequence[Score], groups: Groups) -> Estimate:
        """The share of scores that are 1, with a Wilson interval."""
        return share([score.value == 1 for score in scores], groups)

    def mean(self, scores: Sequence[Score], groups: Groups, unit: str = "share") -> Estimate:
        """The mean score with a bootstrap interval."""
        columns = np.array([[score.value, 1.0] for score in scores])
        found = estimate_of_sums(columns, ratio, groups=groups, unit=unit, seed=self.seed)
        assert found is not None
        return found

    def of_counts(
        self, scores: Sequence[Score], above: Sequence[str], below: Sequence[str], groups: Groups
    ) -> Estimate | None:
        """Sums of some counts over sums of others, with a bootstrap interval.

        ``n`` is the sum below. None where that is zero.
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
    """Every record answered by its skill's most frequent answer in these data."""
    counts: dict[str | None, Counter[str]] = {}
    for record in records:
        counts.setdefault(record.skill, Counter())[record.answer] += 1
    common = {skill: found.most_common(1)[0][0] for skill, found in counts.items()}
    return [Output(common[record.skill]) for record in records]


def groups_of(records: Sequence[Record]) -> list[str | None]:
    """Questions about one medium share a label: the bootstrap redraws them together."""
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
