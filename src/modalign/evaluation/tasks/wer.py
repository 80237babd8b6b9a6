"""Word error rate of transcripts by jiwer: (substitutions + deletions + insertions) / words expected."""

from __future__ import annotations

import importlib.metadata
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from modalign.data.records import Record
from modalign.evaluation.tasks.base import Groups, Output, Score, Task
from modalign.numbers.estimate import Estimate

NORMALISER = (
    "NFKC, lower case, apostrophes inside words kept, other punctuation to spaces, single spaces"
)
_APART = re.compile(r"(?<!\w)'|'(?!\w)|[^\w'\s]|_")


def normalise(text: str) -> str:
    """Normalise a transcript: ``"It's  HERE!"`` -> ``"it's here"``."""
    text = unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(_APART.sub(" ", text.lower()).split())


class Wer(Task):
    """Word error rate against the expected answer; further accepted answers are not used."""

    name = "wer"
    headline = "WER"
    advice = (
        "the rate is per expected word: give transcripts with words, or leave these records out"
    )
    lower_is_better = True
    needs = ("jiwer",)

    def problem(self, record: Record) -> str | None:
        """A transcript without a word."""
        return None if normalise(record.answer) else f"no word in the transcript {record.answer!r}"

    def score_one(self, record: Record, output: Output) -> Score:
        """Return each record's rate, and the counts behind it."""
        import jiwer

        expected, said = normalise(record.answer), normalise(output.text)
        found = jiwer.process_words(expected, said)
        counts = {
            "substitutions": found.substitutions,
            "deletions": found.deletions,
            "insertions": found.insertions,
            "words": len(expected.split()),
            "expected": expected,
        }
        return Score(float(found.wer), said, counts)

    def quality(self, score: Score) -> float:
        """Return the share of words that are right: 1 less the rate, at least 0."""
        return max(0.0, 1.0 - score.value)

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """The rate over all words, and its three parts."""
        parts = ("substitutions", "deletions", "insertions")
        found = {"WER": self.of_counts(scores, parts, ("words",), groups)}
        found |= {name: self.of_counts(scores, (name,), ("words",), groups) for name in parts}
        return {name: measure for name, measure in found.items() if measure is not None}

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Return none: transcripts have no most frequent one, and an empty output has a rate of 1."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The normaliser and the library."""
        return {"normaliser": NORMALISER, "jiwer": importlib.metadata.version("jiwer")}
