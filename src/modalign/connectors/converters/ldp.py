"""``ldp``: MLP at width D, then two depthwise-separable blocks, the second with stride 2.

Shapes: features (B, N, d) on a grid (h, w) -> tokens (B, ceil(h/2) ceil(w/2), D), reading order.
Source: MobileVLM (arXiv 2312.16886), its "lightweight downsample projector".
Parameters: dD + D + D^2 + D for the MLP and per block 9D + 4D + D^2 + 2DS + S + D, where the
squeezed width S is D/4 rounded to a multiple of 8.
Recipe of the paper: stage 1 connector alone (batch 256, lr 1e-3), stage 2 connector and LLM
(batch 128, lr 2e-5 for the 1.4 B LLM, 4e-5 for the 2.7 B one).
Deliberately changed: the squeeze averages over the features present only and each block clears
padding, so it never leaks; grids need not be square.
Initialisation: torch default, as published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    Grid,
    Masked,
    PrefixConnector,
    Widths,
    grid_of,
    map_flops,
    zero_masked,
)
from modalign.connectors.converters.shared import (
    ChannelNorm,
    SqueezeExcite,
    affine_stack,
    depthwise_conv,
    grid_tokens,
    masked_grid,
)


class LdpConnector(PrefixConnector):
    """Lightweight downsample projector (MobileVLM, arXiv 2312.16886).

    Raises:
        ConnectorError: the encoder gives no grid.
    """

    name = "ldp"
    family = "converter"
    group = "locality"
    token_formula = "N/4"
    parameter_text = "dD + D + D^2 + D + 2(14D + D^2 + 2DS + S), S = D/4"
    papers = ("MobileVLM (arXiv 2312.16886)",)
    needs_grid = True

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        D = widths.hidden_size
        self.layers = affine_stack(widths.feature_size, D, 2)
        self.mix = InvertedResidual(D, stride=1)
        self.downsample = InvertedResidual(D, stride=2)

    def num_tokens(self, num_features: int) -> int:
        """Return ``ceil(h/2) ceil(w/2)``."""
        h, w = grid_of(self.widths, num_features, self.name)
        return -(-h // 2) * -(-w // 2)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the MLP and the first block at N places, and of the second block at M."""
        blocks = self.mix.flops(num_features) + self.downsample.flops(self.num_tokens(num_features))
        return map_flops(num_features, self.layers) + blocks

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        embedded = self.layers(zero_masked(features, mask))
        x, present = masked_grid(embedded, mask, grid, self.name)
        return grid_tokens(*self.downsample(*self.mix(x, present)))


class InvertedResidual(nn.Module):
    """MobileNet-v3 block without expansion, with layer norm: (B, D, h, w) -> (B, D, h', w').

    Depthwise 3 x 3, norm, hard-swish, squeeze-excite, pointwise, norm; added to its input when the
    stride is 1. It takes and returns the grid together with its ``present`` map.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = depthwise_conv(width, stride)
        self.depthwise_norm = ChannelNorm(width)
        self.squeeze_excite = SqueezeExcite(width, _squeezed(width), nn.ReLU(), nn.Hardsigmoid())
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.pointwise_norm = ChannelNorm(width)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """X (B, D, h, w), zero where absent, and present -> the same at the stride's grid."""
        y = functional.hardswish(self.depthwise_norm(self.depthwise(x)))
        if self.stride > 1:
            # An output covers the block of inputs from its centre on, and is present if any of them is.
            present = functional.max_pool2d(present, self.stride, ceil_mode=True)
        y = self.pointwise_norm(self.pointwise(self.squeeze_excite(y, present)))
        if self.stride == 1:
            y = x + y
        return y * present, present

    def flops(self, places: int) -> float:
        """Return the FLOPs of one item at ``places`` output places; its gate is computed once."""
        return map_flops(places, self.depthwise, self.pointwise) + map_flops(1, self.squeeze_excite)


def _squeezed(width: int) -> int:
    """Round a quarter of the width to a multiple of 8, at most 10 % lower (MobileNet's rule)."""
    quarter = width // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * quarter else rounded + 8
