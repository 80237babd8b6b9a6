"""``mlp``: two affine maps with a GELU between them per feature, the connector of LLaVA-1.5.

Shapes: features (B, N, d) -> tokens (B, N, D).
Source: Improved Baselines with Visual Instruction Tuning, LLaVA-1.5 (arXiv 2310.03744).
Parameters: dD + D + (depth - 1)(D^2 + D); depth is 2 in the paper.
Recipe of the paper: stage 1 trains the connector alone (batch 256, lr 1e-3, cosine, warm-up 3 %,
one epoch); stage 2 connector and LLM (batch 128, lr 2e-5).
Deliberately changed: nothing. Masked features are read as zeros, so padding gives finite tokens.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modalign.connectors.base import Grid, PrefixConnector, Variant, Widths, zero_masked
from modalign.connectors.converters.layers import (
    affine_stack,
    affine_stack_flops,
    affine_stack_parameters,
    require_positive,
)


class MlpConnector(PrefixConnector):
    """Affine ``d -> D`` then ``depth - 1`` times GELU and affine ``D -> D`` (arXiv 2310.03744).

    Args:
        widths: the neighbours.
        depth: number of affine maps, at least 1; only depth 2 exports to the native Llava class.
    """

    name = "mlp"
    family = "converter"
    group = "direct mapping"
    token_formula = "N"
    parameter_text = "dD + D + (depth - 1)(D^2 + D)"
    papers = ("LLaVA-1.5 (arXiv 2310.03744)",)
    export_target = "Llava"

    def __init__(self, widths: Widths, depth: int = 2) -> None:
        super().__init__(widths)
        require_positive(self.name, depth=depth)
        self.depth = depth
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, depth)
        if depth != 2:  # Llava's projector has exactly two maps, so this instance cannot go there
            self.export_target = "remote-code"

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Depth 2 in both variants: the published size already follows d and D."""
        return {"depth": 2}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``dD + D + (depth - 1)(D^2 + D)``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """N: one token per feature."""
        return num_features

    def flops(self, num_features: int) -> float:
        """``2N(dD + (depth - 1)D^2)``."""
        d, D = self.widths.feature_size, self.widths.hidden_size
        return affine_stack_flops(num_features, d, D, self.depth)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) and mask (B, N) -> tokens (B, N, D) and the same mask."""
        return self.layers(zero_masked(features, mask)), mask


def _parameters(widths: Widths, depth: int = 2) -> int:
    return affine_stack_parameters(widths.feature_size, widths.hidden_size, depth)
