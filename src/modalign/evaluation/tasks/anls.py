"""Average normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from modalign.data.records import Record
from modalign.evaluation.tasks.base import Groups, Output, Score, Task
from modalign.numbers.estimate import Estimate

THRESHOLD = 0.5


def normalise(text: str) -> str:
    """Return the text in lower case with single spaces."""
    return " ".join(text.lower().split())


def similarity(output: str, answers: Sequence[str]) -> float:
    """Return the largest ``1 - NL`` over the answers, 0 if the distance NL is 0.5 or more.

    NL is the Levenshtein distance over the longer text's length; texts must be normalised.
    """
    from rapidfuzz.distance import Levenshtein

    distances = [Levenshtein.normalized_distance(output, answer) for answer in answers]
    return max((1.0 - d if d < THRESHOLD else 0.0) for d in distances)


class Anls(Task):
    """ANLS of generated answers against the expected and every further accepted answer."""

    name = "anls"
    headline = "ANLS"
    needs = ("rapidfuzz",)

    def score_one(self, record: Record, output: Output) -> Score:
        """The similarity, 0 to 1."""
        said = normalise(output.text)
        answers = [normalise(answer) for answer in (record.answer, *record.answers)]
        return Score(similarity(said, answers), said)

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Mean similarity."""
        return {"ANLS": self.mean(scores, groups)}

    def settings(self) -> dict[str, float]:
        """The threshold."""
        return {"threshold": THRESHOLD}
