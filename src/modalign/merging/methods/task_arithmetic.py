"""Task arithmetic (arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from modalign.merging.deltas import Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import weighted_sum


@merge_method("task_arithmetic")
def task_arithmetic(
    deltas: Deltas, weights: Mapping[str, float], *, scale: float = 1.0
) -> Iterator[Tensor]:
    """The base plus the weighted sum of the parents' differences from it, times scale."""
    for block in deltas:
        yield scale * weighted_sum(block, weights)
