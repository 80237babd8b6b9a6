"""``clipcap``: one global vector expanded by an MLP to P prefix embeddings.

Shapes: features (B, N, d) -> their mean (B, d) -> tokens (B, P, D).
Source: ClipCap: CLIP Prefix for Image Captioning (arXiv 2111.09734), its MLP mapper.
Parameters: dH + H + H PD + PD with H = PD/2: quadratic in PD, 860 M at D = 4096 and P = 10.
Recipe of the paper: AdamW, lr 2e-5, batch 40, 5000 warm-up steps, 10 epochs of captions; with the
LLM frozen ("only prefix") or trained.
Deliberately changed: the global vector is the mean of the features present, since not every
encoder has a class token. P stays 10 when matched: the map expands a vector and compresses nothing.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import (
    FixedLength,
    Grid,
    Masked,
    TokenOptions,
    Widths,
    map_flops,
    zero_masked,
)
from modalign.connectors.converters.shared import require_positive


@dataclass(frozen=True)
class ClipCapOptions(TokenOptions):
    """Options of ``clipcap``; both sizes have ten embeddings, since the published size already follows D.

    Attributes:
        num_tokens: P, prefix embeddings per item.
    """

    num_tokens: int = 10


class ClipCapConnector(FixedLength):
    """Mean of the features, affine, tanh, affine to ``num_tokens`` embeddings (arXiv 2111.09734)."""

    name = "clipcap"
    family = "converter"
    group = "prefix from a global vector"
    token_formula = "P"
    parameter_text = "dH + H + H PD + PD, H = PD/2"
    papers = ("ClipCap (arXiv 2111.09734)",)
    options_type = ClipCapOptions
    options: ClipCapOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        require_positive(self.name, num_tokens=self.options.num_tokens)
        outputs = self.options.num_tokens * widths.hidden_size
        self.layers = nn.Sequential(
            self._affine(widths.feature_size, outputs // 2),
            nn.Tanh(),
            self._affine(outputs // 2, outputs),
        )

    def _affine(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)

    def flops(self, num_features: int) -> float:
        """Return ``2(dH + H PD)``, whatever N; the mean's additions are not counted."""
        return map_flops(1, self.layers)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) -> tokens (B, P, D); an item without features is masked out."""
        P = self.options.num_tokens
        tokens = self.layers(masked_mean(features, mask)).unflatten(-1, (P, -1))
        return tokens, mask.any(dim=1, keepdim=True).expand(-1, P)


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, d) of the features present; zeros for an item without any."""
    count = mask.sum(dim=1, keepdim=True).clamp_min(1)
    return zero_masked(features, mask).sum(dim=1) / count
