"""TIES: trim, elect signs, merge what agrees (arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from modalign.merging.deltas import Deltas, kept
from modalign.merging.registry import merge_method
from modalign.merging.sums import Share, agreed


@merge_method("ties")
def ties(
    deltas: Deltas, weights: Mapping[str, float], *, density: Share = 0.5, scale: float = 1.0
) -> Iterator[Tensor]:
    """Each difference's largest share (density); per number the mean of those with the elected sign."""
    least = {name: deltas.least(lambda b, n=name: b[n].abs(), density) for name in weights}  # type: ignore[misc]
    for block in deltas:
        trimmed = {name: d * kept(d.abs(), least[name]) for name, d in block.items()}
        yield scale * agreed(trimmed, weights)
