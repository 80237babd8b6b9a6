"""Exact match of the greedy answer, ignoring case and outer spaces; the default task."""

from __future__ import annotations

from collections.abc import Sequence

from modalign.data.records import Record
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks.base import Groups, Output, Score, Task
from modalign.numbers.estimate import Estimate


def plain(text: str) -> str:
    """Normalise a text for comparison."""
    return text.strip().casefold()


class Exact(Task):
    """Right when the output equals the expected answer or another accepted one."""

    name = "exact"

    def score_one(self, record: Record, output: Output) -> Score:
        """1 for an equal answer, else 0."""
        said = plain(output.text)
        return Score(float(said in map(plain, (record.answer, *record.answers))), said)

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Accuracy."""
        return {"accuracy": self.share(scores, groups)}

    def chance(self, records: Sequence[Record], guess: BlindGuess) -> list[float | None]:
        """A uniform guess among the offered options, or among the training answers."""
        return guess.chance(records)
