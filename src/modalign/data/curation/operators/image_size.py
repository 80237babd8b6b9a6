"""Drop rows with an image that is too small, too large or too narrow."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.media import Need
from modalign.data.curation.operators.base import FilterJudge, Judge, Operator, Workplace


class ImageSize(Operator):
    """Keep rows all of whose images are within limits, both included; rows without images stay.

    Attributes:
        min_side: of the shorter side, in pixels.
        max_side: of the longer side, in pixels.
        max_aspect: longer side over shorter side.
    """

    name: ClassVar[str] = "image_size"

    min_side: int | None = Field(default=None, ge=1)
    max_side: int | None = Field(default=None, ge=1)
    max_aspect: float | None = Field(default=None, ge=1)

    @property
    def needs(self) -> Need:
        """Images are opened."""
        return "picture"

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return FilterJudge(self._reason)

    def _reason(self, row: Row) -> str | None:
        for facts in row.media:
            if facts.width is None or facts.height is None:
                continue
            short, long = sorted((facts.width, facts.height))
            size = f"image of {facts.width} x {facts.height} pixels"
            if self.min_side is not None and short < self.min_side:
                return f"{size}, shorter side under {self.min_side}"
            if self.max_side is not None and long > self.max_side:
                return f"{size}, longer side over {self.max_side}"
            if self.max_aspect is not None and long > self.max_aspect * short:
                return f"{size}, aspect {long / short:.2f} over {self.max_aspect:g}"
        return None
