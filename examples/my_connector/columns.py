"""``columns``: the mean of every column of the grid, then one affine map.

Shapes: features (B, h * w, d) on a grid -> tokens (B, w, D), from left to right.
Parameters: dD + D.

Only the standard library, torch, transformers and modalign.connectors are imported: a trained model
is saved with a copy of this file and loads where neither modalign nor this package is installed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Widths,
    grid_of,
    map_flops,
    to_grid,
    zero_masked,
)


class ColumnsConnector(PrefixConnector):
    """Mean over each column, then ``d -> D``."""

    name = "columns"
    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "w"
    parameter_text = "dD + D"
    papers = ("an example; no paper",)
    needs_grid = True

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.projection = nn.Linear(widths.feature_size, widths.hidden_size)

    def num_tokens(self, num_features: int) -> int:
        """w, the columns of the grid."""
        return grid_of(self.widths, num_features, self.name)[1]

    def flops(self, num_features: int) -> float:
        """``2wdD``; the means' additions are not counted."""
        return map_flops(self.num_tokens(num_features), self.projection)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, h * w, d) and mask (B, h * w) -> tokens (B, w, D) and mask (B, w)."""
        present = to_grid(mask.unsqueeze(-1).to(features.dtype), grid, self.name).sum(
            2
        )  # (B, 1, w)
        total = to_grid(zero_masked(features, mask), grid, self.name).sum(2)  # (B, d, w)
        means = total / present.clamp(min=1)
        return self.projection(means.transpose(1, 2)), present[:, 0] > 0
