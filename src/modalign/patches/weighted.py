"""A weighted sum of changes that is only summed when applied: what a soup does to one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalign.patches.changes import Change, LowRankChange


@dataclass(frozen=True)
class WeightedChange(Change):
    """A weighted sum of changes that is computed only when it is applied.

    Attributes:
        terms: pairs of weight and change, all of one shape.
    """

    terms: tuple[tuple[float, Change], ...]
    form: ClassVar[str] = "weighted"

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Change`."""
        return self.terms[0][1].shape

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`Change`."""
        return {
            "weights": [weight for weight, _ in self.terms],
            "terms": [change.layout for _, change in self.terms],
        }

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Change`."""
        return {
            f"{number}/{part}": value
            for number, (_, change) in enumerate(self.terms)
            for part, value in change.tensors().items()
        }

    def low_rank(self) -> LowRankChange | None:
        """See :class:`Change`."""
        found = [each.scaled(weight).low_rank() for weight, each in self.terms]
        pairs = [each for each in found if each is not None]
        return LowRankChange.beside(pairs) if len(pairs) == len(found) else None

    def delta(self) -> Tensor:
        """See :class:`Change`. Summed in float64, in the order of the terms."""
        total = torch.zeros(self.shape, dtype=torch.float64)
        for weight, change in self.terms:
            total += weight * change.delta().double()
        return total

    def scaled(self, factor: float) -> WeightedChange:
        """See :class:`Change`."""
        return WeightedChange(tuple((factor * weight, change) for weight, change in self.terms))

    def sliced(self, rows: Tensor | None, columns: Tensor | None) -> WeightedChange:
        """See :class:`Change`."""
        return WeightedChange(tuple((w, each.sliced(rows, columns)) for w, each in self.terms))

    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> Change | None:
        """See :class:`Change`."""
        left = [(weight, each.keeping(places, gone)) for weight, each in self.terms]
        terms = tuple((weight, each) for weight, each in left if each is not None)
        return WeightedChange(terms) if terms else None

    def problem(self, edits: int) -> str:
        """See :class:`Change`."""
        if not all(math.isfinite(weight) for weight, _ in self.terms):
            return "has weights that are not finite"
        if len({change.shape for _, change in self.terms}) != 1:
            return "has terms of different shapes"
        return next((why for _, each in self.terms if (why := each.problem(edits))), "")
