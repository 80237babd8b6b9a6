"""Counts become features: of each count x, log(1 + x) and whether it is 0. No parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modalign.encoders.base import Prepared, SignalEncoder, all_features, padded


class LogCounts(SignalEncoder):
    """One feature of width 2 for each count.

    Args:
        most: the most counts of a medium.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.num_features, self.feature_size = most, 2

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Counts (n, T) -> features (n, T, 2) and the mask of those that are there."""
        features = torch.stack([values.log1p(), (values == 0).to(values.dtype)], dim=-1)
        return all_features(features) if mask is None else (features, mask)


def build(spec: dict[str, Any]) -> SignalEncoder:
    """The encoder from its description."""
    return LogCounts(spec["most"])


def prepare(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """Decoded media, (T_i,) each, as one batch."""
    return padded([torch.as_tensor(signal, dtype=torch.float32) for signal in signals])
