"""Spherical interpolation between two models, each tensor taken as one vector (Shoemake 1985)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from modalign.errors import UsageError
from modalign.merging.deltas import Block, Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import mean

PARALLEL = 0.9995  # cosine beyond which the angle is too small to divide by


@merge_method("slerp", needs_base=False, default="shares", most=2)
def slerp(deltas: Deltas, weights: Mapping[str, float]) -> Iterator[Tensor]:
    """Two models on the arc between their tensors' directions; near-parallel tensors by their mean."""
    if len(weights) != 2:
        raise UsageError("slerp lies between two models; give two")
    first, second = weights

    def products(block: Block) -> Tensor:
        a, b = (block.origin + block[name] for name in (first, second))
        return torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])

    dot, one, other = deltas.total(products).tolist()
    size = math.sqrt(one * other)
    cosine = dot / size if size else 1.0
    share = weights[second] / (weights[first] + weights[second])
    for block in deltas:
        if abs(cosine) > PARALLEL:
            yield mean(block, weights)
            continue
        angle = math.acos(cosine)
        parts = [math.sin(part * angle) / math.sin(angle) for part in (1 - share, share)]
        a, b = (block.origin + block[name] for name in (first, second))
        yield parts[0] * a + parts[1] * b - block.origin
