"""``fused_mlp``: three affine maps with a wide first one, made for two towers joined on channel.

Shapes: features (B, N, d) -> tokens (B, N, D).
Source: Prismatic VLMs (arXiv 2402.07865), its "fused-gelu-mlp".
Parameters: dI + I + ID + D + D^2 + D, where the inner width I is 4d in the paper.
Recipe of the paper: one stage, connector and LLM together (batch 128, lr 2e-5,
cosine, warm-up 3 %).
Deliberately changed: the paper's inner width grows with the encoder; the matched variant sets it to
D instead. The connector takes d as it is, from one tower or from several joined ones.
Initialisation: torch default, as published (seed it before building for equal starts).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    affine_parameters,
    linear_flops,
    zero_masked,
)
from modalign.connectors.converters.layers import require_positive


class FusedMlpConnector(PrefixConnector):
    """``d -> I``, GELU, ``I -> D``, GELU, ``D -> D`` (Prismatic, arXiv 2402.07865).

    Args:
        widths: the neighbours.
        inner_size: I; None means 4d, as published.
    """

    name = "fused_mlp"
    family = "converter"
    group = "direct mapping"
    token_formula = "N"
    parameter_text = "dI + I + ID + D + D^2 + D, I = 4d"
    papers = ("Prismatic VLMs (arXiv 2402.07865)",)

    def __init__(self, widths: Widths, inner_size: int | None = None) -> None:
        super().__init__(widths)
        d, D = widths.feature_size, widths.hidden_size
        self.inner_size = 4 * d if inner_size is None else inner_size
        require_positive(self.name, inner_size=self.inner_size)
        self.layers = nn.Sequential(
            nn.Linear(d, self.inner_size),
            nn.GELU(),
            nn.Linear(self.inner_size, D),
            nn.GELU(),
            nn.Linear(D, D),
        )

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Inner width 4d as published, D when matched."""
        published = variant == "published"
        return {"inner_size": 4 * widths.feature_size if published else widths.hidden_size}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``dI + I + ID + D + D^2 + D``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """N: one token per feature."""
        return num_features

    def flops(self, num_features: int) -> float:
        """``2N(dI + ID + D^2)``."""
        d, D, inner = self.widths.feature_size, self.widths.hidden_size, self.inner_size
        return sum(linear_flops(num_features, *io) for io in ((d, inner), (inner, D), (D, D)))

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) and mask (B, N) -> tokens (B, N, D) and the same mask."""
        return self.layers(zero_masked(features, mask)), mask


def _parameters(widths: Widths, inner_size: int | None = None) -> int:
    d, D = widths.feature_size, widths.hidden_size
    inner = 4 * d if inner_size is None else inner_size
    return affine_parameters(d, inner) + affine_parameters(inner, D) + affine_parameters(D, D)
