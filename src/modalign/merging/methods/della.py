"""DELLA: drop at random, large numbers less often (arXiv 2406.11617)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from modalign.errors import UsageError
from modalign.merging.deltas import Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import Share, agreed


def chances(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Return the probability of keeping each number: density -/+ epsilon by its rank within its row."""
    rows = delta.abs().reshape(len(delta), -1) if delta.dim() > 1 else delta.abs()[None]
    ranks = rows.argsort(dim=-1, stable=True).argsort(dim=-1).double()
    spread = ranks / max(rows.shape[-1] - 1, 1)  # 0 the smallest, 1 the largest
    return (density - epsilon + 2 * epsilon * spread).reshape(delta.shape)


@merge_method("della")
def della(
    deltas: Deltas,
    weights: Mapping[str, float],
    *,
    density: Share = 0.5,
    epsilon: Annotated[float, Field(ge=0)] = 0.1,
    scale: float = 1.0,
) -> Iterator[Tensor]:
    """Like dare_ties, with probabilities from density - epsilon (smallest of a row) to + epsilon."""
    if not epsilon < density <= 1 - epsilon:
        raise UsageError(
            f"della keeps with probabilities {density - epsilon:g} to {density + epsilon:g}; they must be "
            "above 0 and at most 1"
        )
    for block in deltas:
        found = {}
        for name, delta in block.items():
            keep = chances(delta, density, epsilon)
            found[name] = torch.where(block.uniform(name) < keep, delta / keep, 0.0)
        yield scale * agreed(found, weights)
