"""``c_abstractor``: RegNet blocks, adaptive average pool, RegNet blocks again, MLP.

Shapes: features (B, N, d) on a grid -> tokens (B, M, D), M = side x side, in reading order.
Source: Honeybee: Locality-enhanced Projector for Multimodal LLM (arXiv 2312.06742).
Parameters: Nd for the positions; per block of inputs I and width W
IW + 2W + 9W + 2W + SE + W^2 + 2W, SE = 2WS + S + W with S = I/4, and IW + 2W more for the shortcut
where I != W; WD + D + D^2 + D for the MLP. 3 + 3 blocks of W = 1024 and M = 144 in the paper.
Recipe of the paper: stage 1 connector alone (50 k steps, batch 256, lr 1e-4 in the released
configuration, 3e-4 in the paper), stage 2 connector and LLM (batch 128, lr 2e-5).
Deliberately changed: positions are resized (bilinear) if an item's grid is not the encoder's; the
squeeze averages over only the features present and each block clears padding; Honeybee's optional
learnt end tokens (off in its released configuration) are left out. The matched variant is 1 + 1
blocks of width min(D, 1024).
Initialisation: as published, N(0, 0.02) for maps and positions, zero biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import Grid, Masked, Widths, map_flops, quarter_tokens
from modalign.connectors.converters.shared import (
    ChannelNorm,
    PooledConnector,
    PoolOptions,
    SqueezeExcite,
    affine_stack,
    depthwise_conv,
    grid_tokens,
    masked_grid,
    pool_grid,
    require_positive,
)
from modalign.connectors.layers import typed


@dataclass(frozen=True)
class CAbstractorOptions(PoolOptions):
    """Options of ``c_abstractor``.

    Attributes:
        inner_size: W, width of the blocks.
        depth: blocks before the pool, and again after it.
    """

    inner_size: int = 1024
    depth: int = 3

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 1 + 1 blocks of width min(D, 1024) and about N/4 tokens."""
        return cls(quarter_tokens(widths), min(widths.hidden_size, 1024), 1)


class CAbstractorConnector(PooledConnector):
    """Convolutional abstractor (Honeybee, arXiv 2312.06742)."""

    name = "c_abstractor"
    group = "locality"
    parameter_text = "Nd + blocks of about 2.5 W^2 + WD + D + D^2 + D"
    rate_scale = 0.3
    papers = ("Honeybee (arXiv 2312.06742)",)
    options_type = CAbstractorOptions
    options: CAbstractorOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        inner_size, depth = self.options.inner_size, self.options.depth
        require_positive(self.name, inner_size=inner_size, depth=depth)
        h, w = widths.grid or (0, 0)  # the base class has refused a missing grid
        self.positions = nn.Parameter(torch.empty(1, widths.feature_size, h, w))
        inputs = [widths.feature_size] + [inner_size] * (depth - 1)
        self.before = nn.ModuleList(RegNetBlock(size, inner_size) for size in inputs)
        self.after = nn.ModuleList(RegNetBlock(inner_size, inner_size) for _ in range(depth))
        self.layers = affine_stack(inner_size, widths.hidden_size, 2, nn.SiLU)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of blocks at N places, and of blocks and MLP at M places."""
        M = self.side**2
        before = sum(block.flops(num_features) for block in typed(self.before, RegNetBlock))
        after = sum(block.flops(M) for block in typed(self.after, RegNetBlock))
        return before + after + map_flops(M, self.layers)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) on ``grid`` -> tokens (B, M, D) and mask (B, M)."""
        x, present = masked_grid(features, mask, grid, self.name)
        x = (x + self._positions_on(x.shape[2], x.shape[3])) * present
        for block in self.before:
            x = block(x, present)
        x, present = pool_grid(x, present, self.side)
        for block in self.after:
            x = block(x, present)
        tokens, token_mask = grid_tokens(x, present)
        return self.layers(tokens), token_mask

    def _positions_on(self, h: int, w: int) -> Tensor:
        if self.positions.shape[2:] == (h, w):
            return self.positions
        return functional.interpolate(self.positions, (h, w), mode="bilinear", align_corners=False)


class RegNetBlock(nn.Module):
    """RegNet bottleneck with groups of one channel: (B, I, h, w) -> (B, W, h, w).

    Pointwise, depthwise 3 x 3, squeeze-excite, pointwise, each followed by a layer norm over the
    channels; SiLU; a shortcut that is a pointwise map and a norm where I != W.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, 1, bias=False)
        self.enter_norm = ChannelNorm(width)
        self.depthwise = depthwise_conv(width)
        self.depthwise_norm = ChannelNorm(width)
        squeezed = max(1, round(inputs / 4))  # RegNet: of the block's inputs, not its width
        self.squeeze_excite = SqueezeExcite(width, squeezed, nn.SiLU(), nn.Sigmoid())
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        self.leave_norm = ChannelNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != width:
            pointwise = nn.Conv2d(inputs, width, 1, bias=False)
            self.shortcut = nn.Sequential(pointwise, ChannelNorm(width))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """X (B, I, h, w), zero where absent, and present (B, 1, h, w) -> (B, W, h, w)."""
        # The norm's bias refills padding: clear it before a neighbour can read it.
        y = functional.silu(self.enter_norm(self.enter(x))) * present
        y = functional.silu(self.depthwise_norm(self.depthwise(y)))
        y = self.leave_norm(self.leave(self.squeeze_excite(y, present)))
        return functional.silu(self.shortcut(x) + y) * present

    def flops(self, places: int) -> float:
        """Return the FLOPs of one item at ``places`` places; its gate is computed once."""
        maps = (self.enter, self.depthwise, self.leave, self.shortcut)
        return map_flops(places, *maps) + map_flops(1, self.squeeze_excite)
