"""``pixel_shuffle_linear``: fold s x s neighbours into channels, then one matrix without bias.

Shapes: features (B, N, d) on a grid -> tokens (B, N / s^2, D), in reading order.
Source: Idefics3 (arXiv 2408.12637), SmolVLM (arXiv 2504.05299), nanoVLM.
Parameters: s^2 dD.
Recipe: nanoVLM trains everything at once with lr 5.12e-3 for the connector and 5e-5 for both
backbones. Published factors are 2 (Idefics3) to 4 (nanoVLM: 32 x 32 features -> 64 tokens).
Order of the weight's input axis: (row in block, column in block, feature), feature fastest. That is
the order of transformers' ``Idefics3Connector.pixel_shuffle``, so ``projection.weight`` (D, s^2 d)
copies unchanged into its ``modality_projection.proj.weight``; a test compares the outputs.
Deliberately changed: grids need not be square (Idefics3 assumes it).
Initialisation: N(0, 0.02), as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Grid, Masked, Widths, map_flops
from modalign.connectors.converters.shared import FoldingConnector


class PixelShuffleLinearConnector(FoldingConnector):
    """Space-to-depth by ``factor``, then a matrix ``factor^2 d -> D`` (Idefics3, arXiv 2408.12637)."""

    name = "pixel_shuffle_linear"
    parameter_text = "s^2 dD"
    papers = (
        "Idefics3 (arXiv 2408.12637)",
        "SmolVLM (arXiv 2504.05299)",
        "nanoVLM (Hugging Face, 2025)",
    )
    export_target = "Idefics3"

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.projection = nn.Linear(self.folded_size, widths.hidden_size, bias=False)
        nn.init.normal_(self.projection.weight, std=0.02)

    def flops(self, num_features: int) -> float:
        """Return ``2NdD``: s^2 fewer places, each s^2 wider."""
        return map_flops(self.num_tokens(num_features), self.projection)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, N / s^2, D) and mask (B, N / s^2)."""
        folded, folded_mask = self.fold(features, mask, grid)
        return self.projection(folded), folded_mask
