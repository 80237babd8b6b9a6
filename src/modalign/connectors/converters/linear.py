"""``linear``: one affine map per feature, the connector of LLaVA 1.0.

Shapes: features (B, N, d) -> tokens (B, N, D).
Source: Visual Instruction Tuning, LLaVA (arXiv 2304.08485).
Parameters: dD + D.
Recipe of the paper: stage 1 trains the connector alone on 558 k captions (batch 256, lr 1e-3, no
weight decay, cosine, warm-up 3 %, one epoch); stage 2 connector and LLM (batch 128, lr 2e-5).
Deliberately changed: nothing. Masked features are read as zeros, so padding gives finite tokens.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Grid, PrefixConnector, Widths, map_flops, zero_masked


class LinearConnector(PrefixConnector):
    """One affine map ``d -> D`` applied to every feature (LLaVA, arXiv 2304.08485)."""

    name = "linear"
    family = "converter"
    group = "direct mapping"
    token_formula = "N"
    parameter_text = "dD + D"
    papers = ("LLaVA (arXiv 2304.08485)",)
    export_target = "Llava"

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.projection = nn.Linear(widths.feature_size, widths.hidden_size)

    def num_tokens(self, num_features: int) -> int:
        """N: one token per feature."""
        return num_features

    def flops(self, num_features: int) -> float:
        """``2NdD``."""
        return map_flops(num_features, self.projection)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) and mask (B, N) -> tokens (B, N, D) and the same mask."""
        return self.projection(zero_masked(features, mask)), mask
