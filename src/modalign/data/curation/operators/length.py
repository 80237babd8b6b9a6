"""Drop rows whose text is too short or too long."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.operators.base import FilterJudge, Judge, Operator, Workplace


class Length(Operator):
    """Keep rows whose text is within limits, both included.

    Attributes:
        of: the whole `text` (user and assistant), the `question` or the `answer`.
        min_chars, max_chars: characters, without white space at the ends.
        min_words, max_words: words as white space separates them.
    """

    name: ClassVar[str] = "length"

    of: Literal["text", "question", "answer"] = "text"
    min_chars: int | None = Field(default=None, ge=0)
    max_chars: int | None = Field(default=None, ge=0)
    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=0)

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return FilterJudge(self._reason)

    def _reason(self, row: Row) -> str | None:
        text: str = getattr(row, self.of)
        counts = (
            ("characters", len(text), self.min_chars, self.max_chars),
            ("words", len(text.split()), self.min_words, self.max_words),
        )
        for unit, count, low, high in counts:
            if low is not None and count < low:
                return f"{self.of} of {count} {unit}, fewer than {low}"
            if high is not None and count > high:
                return f"{self.of} of {count} {unit}, more than {high}"
        return None
