"""Check whether two tools scored the same questions alike, record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.tools import Scored

TOLERANCE = 1e-4  # of log-likelihoods; batches of other shapes round differently


@dataclass(frozen=True)
class Equality:
    """How two tools compare on n questions.

    Attributes:
        tool: the harness.
        n: questions.
        ours, theirs: mean scores.
        scores, outputs: numbers of records on which they are equal.
        largest: largest difference of an option's log-likelihoods; None for free answers.
        different: numbers of the records that differ in anything.
    """

    tool: str
    n: int
    ours: float
    theirs: float
    scores: int
    outputs: int
    largest: float | None
    different: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not self.different


def compare(tool: str, ours: Sequence[Scored], theirs: Sequence[Scored]) -> Equality:
    """Compare records of the same questions in the same order.

    Raises:
        ValueError: the numbers of records differ or are 0, or the options differ.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} records against {len(theirs)}")
    scores = [a.score == b.score for a, b in zip(ours, theirs, strict=True)]
    outputs = [a.output.strip() == b.output.strip() for a, b in zip(ours, theirs, strict=True)]
    gaps = [
        max((abs(x - y) for x, y in zip(a.options, b.options, strict=True)), default=0.0)
        for a, b in zip(ours, theirs, strict=True)
    ]
    scored = any(each.options for each in ours)
    different = tuple(
        place
        for place, (same, text, gap) in enumerate(zip(scores, outputs, gaps, strict=True))
        if not (same and text and gap <= TOLERANCE)
    )
    return Equality(
        tool=tool,
        n=len(ours),
        ours=sum(each.score for each in ours) / len(ours),
        theirs=sum(each.score for each in theirs) / len(theirs),
        scores=sum(scores),
        outputs=sum(outputs),
        largest=max(gaps) if scored else None,
        different=different,
    )
