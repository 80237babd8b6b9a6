"""``pixel_shuffle_mlp``: fold s x s neighbours into channels, layer norm, two affine maps.

Shapes: features (B, N, d) on a grid -> tokens (B, N / s^2, D), in reading order.
Source: InternVL 1.5 (arXiv 2404.16821), its "mlp1".
Parameters: 2 s^2 d + s^2 dD + D + D^2 + D; s is 2 in the paper.
Recipe: in the family's released scripts, the connector alone first (lr 2e-4), and in the end
everything together (lr 4e-5).
Order of the folded channels: (row in block, column in block, feature), as in
:func:`~modalign.connectors.converters.shared.space_to_depth`; equal to transformers' InternVL on
square grids.
Deliberately changed: nothing.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Grid, Masked, Widths, map_flops
from modalign.connectors.converters.shared import FoldingConnector, affine_stack


class PixelShuffleMlpConnector(FoldingConnector):
    """Space-to-depth, layer norm, affine, GELU, affine (InternVL 1.5, arXiv 2404.16821)."""

    name = "pixel_shuffle_mlp"
    parameter_text = "2 s^2 d + s^2 dD + D + D^2 + D"
    papers = ("InternVL 1.5 (arXiv 2404.16821)",)

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.norm = nn.LayerNorm(self.folded_size)
        self.layers = affine_stack(self.folded_size, widths.hidden_size, 2)

    def flops(self, num_features: int) -> float:
        """Return ``2(N / s^2)(s^2 dD + D^2)``."""
        return map_flops(self.num_tokens(num_features), self.layers)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, N / s^2, D) and mask (B, N / s^2)."""
        folded, folded_mask = self.fold(features, mask, grid)
        return self.layers(self.norm(folded)), folded_mask
