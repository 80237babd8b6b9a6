"""``ldpv2``: MLP at width D, adaptive average pool, a depthwise convolution that adds position.

Shapes: features (B, N, d) on a grid -> tokens (B, M, D), M = side x side, in reading order.
Source: MobileVLM V2 (arXiv 2402.03766).
Parameters: dD + D + D^2 + D + 9D + D.
Recipe of the paper: stage 1 trains connector and LLM (batch 256, lr 1e-3 for the connector, 2e-5
for the LLM), stage 2 the same parts (batch 128, lr 4e-5); M = 144.
Deliberately changed: averages run over the features present only and padding stays zero around the
convolution, so it never leaks; an M larger than the grid is refused.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    linear_flops,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.converters.layers import (
    affine_stack,
    affine_stack_flops,
    affine_stack_parameters,
    depthwise_conv,
    grid_tokens,
    masked_grid,
    pool_grid,
    pool_side,
    published_tokens,
)


class Ldpv2Connector(PrefixConnector):
    """MLP, adaptive pool, residual depthwise 3 x 3 convolution (MobileVLM V2, arXiv 2402.03766).

    Args:
        widths: the neighbours; a grid is needed.
        num_tokens: M, a square number no larger than the grid allows; 144 (12 x 12) as published.

    Raises:
        ConnectorError: no grid, M not square, or its side larger than the grid's.
    """

    name = "ldpv2"
    family = "converter"
    group = "locality"
    token_formula = "M"
    parameter_text = "dD + D + D^2 + D + 10D"
    papers = ("MobileVLM V2 (arXiv 2402.03766)",)
    needs_grid = True

    def __init__(self, widths: Widths, num_tokens: int = 144) -> None:
        super().__init__(widths)
        self.side = pool_side(num_tokens, widths, self.name)
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, 2)
        self.position = depthwise_conv(widths.hidden_size, bias=True)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """144 tokens as published (fewer on a grid below 12 x 12), about N/4 when matched."""
        if variant == "published":
            return {"num_tokens": published_tokens(widths, 144)}
        return {"num_tokens": quarter_tokens(widths)}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``dD + D + D^2 + D + 10D``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N."""
        return self.side**2

    def flops(self, num_features: int) -> float:
        """``2N(dD + D^2) + 18MD``; the pool's additions are not counted."""
        d, D = self.widths.feature_size, self.widths.hidden_size
        return affine_stack_flops(num_features, d, D, 2) + linear_flops(self.side**2, 9, D)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        embedded = self.layers(zero_masked(features, mask))
        x, present = pool_grid(*masked_grid(embedded, mask, grid, self.name), self.side)
        return grid_tokens(x + self.position(x), present)


def _parameters(widths: Widths, num_tokens: int = 144) -> int:
    D = widths.hidden_size
    return affine_stack_parameters(widths.feature_size, D, 2) + 10 * D
