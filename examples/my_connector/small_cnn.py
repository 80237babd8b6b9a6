"""An encoder of one's own: pixels (n, 3, H, W) become a map of features (n, d, h, w)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Two convolutions of stride 4 and 2 with fixed random weights."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights wherever the class is built
            self.layers = nn.Sequential(
                nn.Conv2d(3, width, kernel_size=4, stride=4),
                nn.GELU(),
                nn.Conv2d(width, width, kernel_size=2, stride=2),
            )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, d, H/8, W/8); the grid is taken from the shape."""
        return self.layers(pixel_values)
