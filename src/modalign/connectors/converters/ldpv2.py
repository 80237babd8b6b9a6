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

from modalign.connectors.base import Grid, Masked, Widths, map_flops, zero_masked
from modalign.connectors.converters.shared import (
    PooledConnector,
    affine_stack,
    depthwise_conv,
    grid_tokens,
    masked_grid,
    pool_grid,
)


class Ldpv2Connector(PooledConnector):
    """MLP, adaptive pool, residual depthwise 3 x 3 convolution (MobileVLM V2, arXiv 2402.03766)."""

    name = "ldpv2"
    group = "locality"
    parameter_text = "dD + D + D^2 + D + 10D"
    papers = ("MobileVLM V2 (arXiv 2402.03766)",)

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, 2)
        self.position = depthwise_conv(widths.hidden_size, bias=True)

    def flops(self, num_features: int) -> float:
        """Return ``2N(dD + D^2) + 18MD``; the pool's additions are not counted."""
        return map_flops(num_features, self.layers) + map_flops(self.side**2, self.position)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        embedded = self.layers(zero_masked(features, mask))
        x, present = pool_grid(*masked_grid(embedded, mask, grid, self.name), self.side)
        return grid_tokens(x + self.position(x), present)
