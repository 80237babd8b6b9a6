"""``avgpool_mlp``: adaptive average over the grid, then the MLP of LLaVA-1.5; no learnt pooling.

Shapes: features (B, N, d) on a grid -> tokens (B, M, D), M = side x side, in reading order.
Source: DeCo: Decoupling Token Compression from Semantic Abstraction (arXiv 2405.20985).
Parameters: dD + D + (depth - 1)(D^2 + D); depth is 2 in the paper, without a bias no + D.
Recipe of the paper: that of LLaVA-1.5 (stage 1 connector alone, batch 256, lr 1e-3; stage 2
connector and LLM, batch 128, lr 2e-5), with 576 features pooled to M = 144.
Deliberately changed: averages run over the features present only, so padding never leaks; an M
larger than the grid is refused instead of repeating features.
Initialisation: torch default, as published.

Of depth 1 and without a bias it is one matrix over the means of k x k features. Idefics3's matrix
over k x k folded features can be that: this form exports.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from modalign.connectors.base import Grid, PrefixConnector, Variant, Widths, quarter_tokens
from modalign.connectors.converters.layers import (
    affine_stack,
    affine_stack_flops,
    affine_stack_parameters,
    grid_tokens,
    masked_grid,
    pool_grid,
    pool_side,
    published_tokens,
    require_positive,
)


class AvgpoolMlpConnector(PrefixConnector):
    """Adaptive average pool to ``num_tokens``, then affine, GELU, affine (DeCo, arXiv 2405.20985).

    Args:
        widths: the neighbours; a grid is needed.
        num_tokens: M, a square number no larger than the grid allows.
        depth: number of affine maps, at least 1.
        bias: of the affine maps.

    Raises:
        ConnectorError: no grid, M not square, or its side larger than the grid's.
    """

    name = "avgpool_mlp"
    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "M"
    parameter_text = "dD + D + (depth - 1)(D^2 + D)"
    papers = ("DeCo (arXiv 2405.20985)",)
    needs_grid = True

    def __init__(
        self, widths: Widths, num_tokens: int = 144, depth: int = 2, bias: bool = True
    ) -> None:
        super().__init__(widths)
        require_positive(self.name, depth=depth)
        self.side = pool_side(num_tokens, widths, self.name)
        self.depth = depth
        self.layers = affine_stack(widths.feature_size, widths.hidden_size, depth, bias=bias)
        even = widths.grid is not None and not any(side % self.side for side in widths.grid)
        if depth == 1 and not bias and even:
            self.export_target = "Idefics3"

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """144 tokens as published (fewer on a grid below 12 x 12), about N/4 when matched."""
        if variant == "published":
            return {"num_tokens": published_tokens(widths, 144)}
        return {"num_tokens": quarter_tokens(widths)}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``dD + D + (depth - 1)(D^2 + D)``, without bias ``dD + (depth - 1) D^2``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N."""
        return self.side**2

    def flops(self, num_features: int) -> float:
        """``2M(dD + (depth - 1)D^2)``; the pool's additions are not counted."""
        d, D = self.widths.feature_size, self.widths.hidden_size
        return affine_stack_flops(self.side**2, d, D, self.depth)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        x, present = masked_grid(features, mask, grid, self.name)
        pooled, pooled_mask = grid_tokens(*pool_grid(x, present, self.side))
        return self.layers(pooled), pooled_mask


def _parameters(widths: Widths, num_tokens: int = 144, depth: int = 2, bias: bool = True) -> int:
    return affine_stack_parameters(widths.feature_size, widths.hidden_size, depth, bias)
