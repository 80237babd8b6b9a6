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

from dataclasses import dataclass
from typing import Any

from modalign.connectors.base import Options, Widths
from modalign.connectors.converters.shared import FeatureMap, affine_stack, require_positive


@dataclass(frozen=True)
class MlpOptions(Options):
    """Options of ``mlp``; both sizes have depth 2, since the published size already follows d and D.

    Attributes:
        depth: number of affine maps, at least 1; only depth 2 exports to the native Llava class.
    """

    depth: int = 2


class MlpConnector(FeatureMap):
    """Affine ``d -> D`` then ``depth - 1`` times GELU and affine ``D -> D`` (arXiv 2310.03744)."""

    name = "mlp"
    parameter_text = "dD + D + (depth - 1)(D^2 + D)"
    papers = ("LLaVA-1.5 (arXiv 2310.03744)",)
    export_target = "Llava"
    options_type = MlpOptions
    options: MlpOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        depth = self.options.depth
        require_positive(self.name, depth=depth)
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, depth)
        if depth != 2:  # Llava's projector has exactly two maps
            self.export_target = "remote-code"
