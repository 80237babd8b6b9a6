"""``avgpool_mlp``: adaptive average over the grid, then the MLP of LLaVA-1.5; no learnt pooling.

Shapes: features (B, N, d) on a grid -> tokens (B, M, D), M = side x side, in reading order.
Source: DeCo: Decoupling Token Compression from Semantic Abstraction (arXiv 2405.20985).
Parameters: dD + D + (depth - 1)(D^2 + D); depth is 2 in the paper; without a bias, no + D.
Recipe of the paper: that of LLaVA-1.5 (stage 1 connector alone, batch 256, lr 1e-3; stage 2
connector and LLM, batch 128, lr 2e-5), with 576 features pooled to M = 144.
Deliberately changed: averages run over the features present only, so padding never leaks; an M
larger than the grid is refused instead of repeating features.
Initialisation: torch default, as published.

With depth 1 and without a bias it is one matrix over the means of k x k features. Idefics3's matrix
over k x k folded features can express that, so this form exports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modalign.connectors.base import Grid, Masked, Widths, map_flops
from modalign.connectors.converters.shared import (
    PooledConnector,
    PoolOptions,
    affine_stack,
    grid_tokens,
    masked_grid,
    pool_grid,
    require_positive,
)


@dataclass(frozen=True)
class AvgpoolMlpOptions(PoolOptions):
    """Options of ``avgpool_mlp``.

    Attributes:
        depth: number of affine maps, at least 1.
        bias: of the affine maps.
    """

    depth: int = 2
    bias: bool = True


class AvgpoolMlpConnector(PooledConnector):
    """Adaptive average pool to ``num_tokens``, then affine, GELU, affine (DeCo, arXiv 2405.20985)."""

    name = "avgpool_mlp"
    group = "direct mapping, compressed"
    parameter_text = "dD + D + (depth - 1)(D^2 + D)"
    papers = ("DeCo (arXiv 2405.20985)",)
    options_type = AvgpoolMlpOptions
    options: AvgpoolMlpOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        depth, bias = self.options.depth, self.options.bias
        require_positive(self.name, depth=depth)
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, depth, bias=bias)
        even = widths.grid is not None and not any(side % self.side for side in widths.grid)
        if depth == 1 and not bias and even:
            self.export_target = "Idefics3"

    def flops(self, num_features: int) -> float:
        """Return ``2M(dD + (depth - 1)D^2)``; the pool's additions are not counted."""
        return map_flops(self.side**2, self.layers)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        x, present = masked_grid(features, mask, grid, self.name)
        pooled, pooled_mask = grid_tokens(*pool_grid(x, present, self.side))
        return self.layers(pooled), pooled_mask
