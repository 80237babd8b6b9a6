"""Model breadcrumbs: neither the smallest nor the largest numbers (arXiv 2312.06795)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from modalign.errors import UsageError
from modalign.merging.deltas import Deltas, kept
from modalign.merging.registry import merge_method
from modalign.merging.sums import Share, weighted_sum


@merge_method("breadcrumbs")
def breadcrumbs(
    deltas: Deltas,
    weights: Mapping[str, float],
    *,
    density: Share = 0.9,
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.01,
    scale: float = 1.0,
) -> Iterator[Tensor]:
    """Each difference without its gamma share of largest numbers, of the rest a density share; summed."""
    if density + gamma > 1:
        raise UsageError(f"density {density:g} and gamma {gamma:g} are shares of one whole")
    ends = {
        name: [
            deltas.least(lambda b, n=name: b[n].abs(), share)  # type: ignore[misc]
            for share in (gamma, density + gamma)
        ]
        for name in weights
    }
    for block in deltas:
        chosen = {}
        for name, delta in block.items():
            largest, least = ends[name]
            chosen[name] = delta * (kept(delta.abs(), least) & ~kept(delta.abs(), largest))
        yield scale * weighted_sum(chosen, weights)
