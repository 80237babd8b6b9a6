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

from torch import nn

from modalign.connectors.base import Widths
from modalign.connectors.converters.shared import FeatureMap


class LinearConnector(FeatureMap):
    """One affine map ``d -> D`` applied to every feature (LLaVA, arXiv 2304.08485)."""

    name = "linear"
    parameter_text = "dD + D"
    papers = ("LLaVA (arXiv 2304.08485)",)
    export_target = "Llava"

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.projection = nn.Linear(widths.feature_size, widths.hidden_size)

    @property
    def _map(self) -> nn.Module:
        return self.projection
