"""The result of reading: the records, and the problems of other rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from modalign.data.records import Record, Source

Kind = Literal[
    "row",  # not decodable, or not one of the known shapes
    "encoding",  # bytes or escapes that are not UTF-8 text
    "url",  # a medium that would have to be downloaded
    "placeholder",  # placeholders and media do not match
    "missing-media",
    "broken-media",
    "not-an-image",
    "image-too-large",
    "too-much-work",  # decoding takes longer than is allowed
    "modality",  # a modality that the model does not accept
    "empty-answer",
    "no-supervision",
    "duplicate-id",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of one row, and how to fix it."""

    source: Source
    kind: Kind
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """Return the problem as plain JSON values."""
        return {
            "file": self.source.file,
            "row": self.source.row,
            "kind": self.kind,
            "message": self.message,
        }


@dataclass(slots=True)
class ReadResult:
    """Every row of a data set, as a record or as a problem. A bad row never affects the others."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of rows read, good and bad."""
        return len(self.records) + len({problem.source for problem in self.problems})


class RowError(Exception):
    """A row that cannot become a record; the reader turns it into a `Problem`."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Fields = dict[str, Any]
RawRow = tuple[int, Fields | RowError]
"""A 1-based row number with the row's fields, or the error of reading them."""
RawRows = Iterator[RawRow]
