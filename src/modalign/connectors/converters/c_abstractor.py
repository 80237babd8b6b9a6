"""``c_abstractor``: RegNet blocks, adaptive average pool, RegNet blocks again, MLP.

Shapes: features (B, N, d) on a grid -> tokens (B, M, D), M = side x side, in reading order.
Source: Honeybee: Locality-enhanced Projector for Multimodal LLM (arXiv 2312.06742).
Parameters: Nd for the positions; per block of inputs I and width W
IW + 2W + 9W + 2W + SE + W^2 + 2W, SE = 2WS + S + W with S = I/4, and IW + 2W more for the shortcut
where I != W; WD + D + D^2 + D for the MLP. 3 + 3 blocks of W = 1024 and M = 144 in the paper.
Recipe of the paper: stage 1 connector alone (50 k steps, batch 256, lr 1e-4 in the released
configuration, 3e-4 in the paper), stage 2 connector and LLM (batch 128, lr 2e-5).
Deliberately changed: positions are resized (bilinear) when an item's grid is not the encoder's; the
squeeze averages over the features present only and each block clears padding; Honeybee's optional
learnt end tokens (off in its released configuration) are left out. The matched variant is 1 + 1
blocks of width min(D, 1024).
Initialisation: as published, N(0, 0.02) for maps and positions, zero biases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    linear_flops,
    quarter_tokens,
)
from modalign.connectors.converters.layers import (
    ChannelNorm,
    SqueezeExcite,
    affine_stack,
    affine_stack_flops,
    affine_stack_parameters,
    depthwise_conv,
    grid_tokens,
    masked_grid,
    pool_grid,
    pool_side,
    published_tokens,
    require_positive,
    squeeze_excite_flops,
    squeeze_excite_parameters,
)

PUBLISHED_WIDTH, PUBLISHED_DEPTH, PUBLISHED_TOKENS = 1024, 3, 144


class CAbstractorConnector(PrefixConnector):
    """Convolutional abstractor (Honeybee, arXiv 2312.06742).

    Args:
        widths: the neighbours; a grid is needed.
        num_tokens: M, a square number no larger than the grid allows.
        inner_size: W, width of the blocks.
        depth: blocks before the pool, and again after it.

    Raises:
        ConnectorError: no grid, M not square, its side larger than the grid's, or a size below 1.
    """

    name = "c_abstractor"
    family = "converter"
    group = "locality"
    token_formula = "M"
    parameter_text = "Nd + blocks of about 2.5 W^2 + WD + D + D^2 + D"
    rate_scale = 0.3
    papers = ("Honeybee (arXiv 2312.06742)",)
    needs_grid = True

    def __init__(
        self,
        widths: Widths,
        num_tokens: int = PUBLISHED_TOKENS,
        inner_size: int = PUBLISHED_WIDTH,
        depth: int = PUBLISHED_DEPTH,
    ) -> None:
        super().__init__(widths)
        require_positive(self.name, inner_size=inner_size, depth=depth)
        self.side = pool_side(num_tokens, widths, self.name)
        self.inner_size, self.depth = inner_size, depth
        h, w = widths.grid or (0, 0)  # the base class has refused a missing grid
        self.positions = nn.Parameter(torch.empty(1, widths.feature_size, h, w))
        inputs = [widths.feature_size] + [inner_size] * (depth - 1)
        self.before = nn.ModuleList(RegNetBlock(size, inner_size) for size in inputs)
        self.after = nn.ModuleList(RegNetBlock(inner_size, inner_size) for _ in range(depth))
        self.layers = affine_stack(inner_size, widths.hidden_size, 2, nn.SiLU)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """3 + 3 blocks of 1024 and 144 tokens as published; 1 + 1 of min(D, 1024), N/4 matched."""
        if variant == "published":
            return {
                "num_tokens": published_tokens(widths, PUBLISHED_TOKENS),
                "inner_size": PUBLISHED_WIDTH,
                "depth": PUBLISHED_DEPTH,
            }
        return {
            "num_tokens": quarter_tokens(widths),
            "inner_size": min(widths.hidden_size, PUBLISHED_WIDTH),
            "depth": 1,
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """Positions, blocks and MLP; see the module's formula."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N."""
        return self.side**2

    def flops(self, num_features: int) -> float:
        """Blocks at N places, blocks and MLP at M places."""
        d, W, M = self.widths.feature_size, self.inner_size, self.side**2
        before = _block_flops(num_features, d, W)
        before += (self.depth - 1) * _block_flops(num_features, W, W)
        after = self.depth * _block_flops(M, W, W)
        return before + after + affine_stack_flops(M, W, self.widths.hidden_size, 2)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
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
        self.squeeze_excite = SqueezeExcite(width, _squeezed(inputs), nn.SiLU(), nn.Sigmoid())
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        self.leave_norm = ChannelNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != width:
            pointwise = nn.Conv2d(inputs, width, 1, bias=False)
            self.shortcut = nn.Sequential(pointwise, ChannelNorm(width))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """X (B, I, h, w), zero where absent, and present (B, 1, h, w) -> (B, W, h, w)."""
        # The norm's bias fills padding again: clear it before a neighbour can read it.
        y = functional.silu(self.enter_norm(self.enter(x))) * present
        y = functional.silu(self.depthwise_norm(self.depthwise(y)))
        y = self.leave_norm(self.leave(self.squeeze_excite(y, present)))
        return functional.silu(self.shortcut(x) + y) * present


def _squeezed(inputs: int) -> int:
    """RegNet squeezes to a quarter of the block's inputs, not of its width."""
    return max(1, round(inputs / 4))


def _block_parameters(I: int, W: int) -> int:  # noqa: E741
    norms = 3 * 2 * W
    shortcut = 0 if I == W else I * W + 2 * W
    excite = squeeze_excite_parameters(W, _squeezed(I))
    return I * W + 9 * W + W * W + norms + excite + shortcut


def _block_flops(places: int, I: int, W: int) -> float:  # noqa: E741
    pointwise = linear_flops(places, I, W) * (1 if I == W else 2) + linear_flops(places, W, W)
    return pointwise + linear_flops(places, 9, W) + squeeze_excite_flops(W, _squeezed(I))


def _parameters(
    widths: Widths,
    num_tokens: int = PUBLISHED_TOKENS,
    inner_size: int = PUBLISHED_WIDTH,
    depth: int = PUBLISHED_DEPTH,
) -> int:
    d, W = widths.feature_size, inner_size
    blocks = _block_parameters(d, W) + (2 * depth - 1) * _block_parameters(W, W)
    return widths.num_features * d + blocks + affine_stack_parameters(W, widths.hidden_size, 2)
