"""The weighted mean of models (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from modalign.merging.deltas import Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import mean


@merge_method("linear", needs_base=False, default="shares")
def linear(deltas: Deltas, weights: Mapping[str, float]) -> Iterator[Tensor]:
    """The mean of the parents, weights divided by their sum."""
    for block in deltas:
        yield mean(block, weights)
