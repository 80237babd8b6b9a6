"""``pool_linear``: average over k neighbouring frames, then one affine map, as in Qwen2-Audio.

Shapes: features (B, N, d) -> means (B, M, d) -> tokens (B, M, D), M = ceil(N/k), in order of time.
Source: Qwen2-Audio (arXiv 2407.10759), k = 2: one token for 40 ms of sound.
Parameters: dD + D.
Recipe of the paper: multi-task pre-training, then instruction tuning and DPO.
Deliberately changed: the mean runs over only the frames present, so padding never leaks, and a partial
last window gives a token (Qwen2-Audio pads every clip to 30 s, so that none is partial). On a grid,
neighbours are those in reading order.
Initialisation: torch default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from modalign.connectors.base import Grid, Masked, Options, PrefixConnector, Widths, map_flops
from modalign.connectors.converters.shared import require_positive
from modalign.connectors.layers import windows


@dataclass(frozen=True)
class PoolLinearOptions(Options):
    """Options of ``pool_linear``.

    Attributes:
        pool: k, frames averaged into one token.
    """

    pool: int = 2

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return four frames per token: N/4 tokens, as other matched connectors have."""
        return cls(4)


class PoolLinearConnector(PrefixConnector):
    """Mean over ``pool`` neighbours, affine ``d -> D`` (Qwen2-Audio, arXiv 2407.10759)."""

    name = "pool_linear"
    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "N/k"
    parameter_text = "dD + D"
    papers = ("Qwen2-Audio (arXiv 2407.10759)",)
    options_type = PoolLinearOptions
    options: PoolLinearOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        require_positive(self.name, pool=self.options.pool)
        self.projection = nn.Linear(widths.feature_size, widths.hidden_size)

    def num_tokens(self, num_features: int) -> int:
        """Return ``ceil(N/k)``: a partial last window also gives a token."""
        return -(-num_features // self.options.pool)

    def flops(self, num_features: int) -> float:
        """Return ``2M dD``; the means' additions are not counted."""
        return map_flops(self.num_tokens(num_features), self.projection)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d), mask (B, N) -> tokens (B, M, D), mask (B, M); the grid does not matter."""
        frames, present = windows(features, mask, self.options.pool)
        count = present.sum(dim=-1, keepdim=True)
        return self.projection(frames.sum(dim=2) / count.clamp_min(1)), count.squeeze(-1) > 0
