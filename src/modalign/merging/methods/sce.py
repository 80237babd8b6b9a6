"""SCE: select numbers that vary, weigh parents by their energy, erase minority signs (arXiv 2408.07990)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from modalign.merging.deltas import Block, Deltas, kept
from modalign.merging.registry import merge_method
from modalign.merging.sums import Share, agreed


@merge_method("sce")
def sce(
    deltas: Deltas, weights: Mapping[str, float], *, density: Share = 1.0, scale: float = 1.0
) -> Iterator[Tensor]:
    """The density share of numbers that vary most between parents; weights times their mean squares."""
    names = list(weights)

    def variance(block: Block) -> Tensor:
        return torch.stack([block[name] for name in names]).var(0, correction=0)

    least = deltas.least(variance, density)

    def selected(block: Block) -> dict[str, Tensor]:
        chosen = kept(variance(block), least)
        return {name: block[name] * chosen for name in names}

    energy = deltas.total(
        lambda block: torch.stack([d.square().sum() for d in selected(block).values()])
    )
    whole = float(energy.sum())
    shares = energy / whole if whole else torch.full_like(energy, 1 / len(names))
    own = {name: weights[name] * float(share) for name, share in zip(names, shares, strict=True)}
    for block in deltas:
        found = selected(block)
        yield scale * agreed(found, own, dict.fromkeys(names, 1.0))
