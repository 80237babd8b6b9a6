"""Distributions of text lengths, answers and image sizes, before and after a curation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from modalign.data.curation.inputs import Row

ANSWERS = 10_000  # distinct values; new ones beyond that count as OTHER, which bounds the memory
SHOWN_ANSWERS = 20
OTHER = "(other answers)"


class Bin(BaseModel):
    """The number of rows or images in a bin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    before: int
    after: int


class Distributions(BaseModel):
    """Distributions before and after the operators.

    Attributes:
        characters: rows by the length of their text, in bins of powers of two.
        answers: rows by their answer, the most frequent before curation.
        longer_side: images by their longer side in pixels; empty where no operator opened images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    characters: list[Bin]
    answers: list[Bin]
    longer_side: list[Bin]


class Tally:
    """Counts that grow row by row."""

    def __init__(self) -> None:
        self._characters = (Counter[int](), Counter[int]())
        self._sides = (Counter[int](), Counter[int]())
        self._answers = (Counter[str](), Counter[str]())

    def add(self, row: Row, sizes: Iterable[tuple[int, int]], *, kept: bool) -> None:
        """Count a row and the sizes of its images."""
        answer = " ".join(row.record.answer.split())
        if answer not in self._answers[0] and len(self._answers[0]) >= ANSWERS:
            answer = OTHER
        length = len(row.text).bit_length()
        sides = [max(size).bit_length() for size in sizes]
        for side in (0, 1) if kept else (0,):
            self._characters[side][length] += 1
            self._answers[side][answer] += 1
            self._sides[side].update(sides)

    def distributions(self) -> Distributions:
        """Return the counts."""
        before, after = self._answers
        frequent = sorted(before.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_ANSWERS]
        return Distributions(
            characters=_bins(*self._characters),
            answers=[Bin(name=a, before=count, after=after[a]) for a, count in frequent],
            longer_side=_bins(*self._sides),
        )


def _bins(before: Counter[int], after: Counter[int]) -> list[Bin]:
    """Return bins of powers of two: bit length n holds 2^(n-1) to 2^n - 1."""
    if not before:
        return []
    return [
        Bin(name=_range(bits), before=before[bits], after=after[bits])
        for bits in range(min(before), max(before) + 1)
    ]


def _range(bits: int) -> str:
    low, high = (0, 0) if bits == 0 else (2 ** (bits - 1), 2**bits - 1)
    return str(low) if low == high else f"{low} to {high}"
