"""DARE: drop numbers of each difference at random and enlarge the rest (arXiv 2311.03099)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from modalign.merging.deltas import Block, Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import Share, agreed, mean


def dropped(block: Block, density: float) -> dict[str, Tensor]:
    """Return each difference with numbers kept at probability ``density`` and divided by it."""
    return {name: d * (block.uniform(name) < density) / density for name, d in block.items()}


@merge_method("dare_linear", default="shares")
def dare_linear(
    deltas: Deltas, weights: Mapping[str, float], *, density: Share = 0.5, scale: float = 1.0
) -> Iterator[Tensor]:
    """Differences with numbers dropped at random, then their weighted mean."""
    for block in deltas:
        yield scale * mean(dropped(block, density), weights)


@merge_method("dare_ties")
def dare_ties(
    deltas: Deltas, weights: Mapping[str, float], *, density: Share = 0.5, scale: float = 1.0
) -> Iterator[Tensor]:
    """Differences with numbers dropped at random, then the mean of those with the elected sign."""
    for block in deltas:
        yield scale * agreed(dropped(block, density), weights)
