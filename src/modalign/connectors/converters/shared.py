"""What several converters share: maps of features, masked grids, pooling, folding, squeeze-excite.

A grid is passed as ``x`` (B, C, h, w) with ``present`` (B, 1, h, w), 1.0 where there is a feature
and 0.0 in padding. Everything here keeps ``x`` at zero where ``present`` is zero, or averages by
``present``, so that padding never leaks. With full grids, the normal case, each function equals
its textbook form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    ConnectorError,
    FixedLength,
    Grid,
    Masked,
    Options,
    PrefixConnector,
    TokenOptions,
    Widths,
    map_flops,
    quarter_tokens,
    square_side,
    to_grid,
    zero_masked,
)


def require_positive(name: str, **options: int) -> None:
    """Raise ConnectorError unless every option is at least 1."""
    for option, value in options.items():
        if value < 1:
            raise ConnectorError(f"connector {name!r} needs {option} >= 1, not {value}")


# --- maps of single features ---


def affine_stack(
    inputs: int,
    outputs: int,
    depth: int,
    activation: Callable[[], nn.Module] = nn.GELU,
    bias: bool = True,
) -> nn.Sequential:
    """Build an affine map ``inputs -> outputs``, then ``depth - 1`` times activation and affine map."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs, bias)]
    for _ in range(depth - 1):
        layers += [activation(), nn.Linear(outputs, outputs, bias)]
    return nn.Sequential(*layers)


class FeatureMap(PrefixConnector):
    """A connector that applies one map ``layers`` (d -> D) to every feature separately."""

    family = "converter"
    group = "direct mapping"
    token_formula = "N"
    layers: nn.Sequential

    @property
    def _map(self) -> nn.Module:
        return self.layers

    def num_tokens(self, num_features: int) -> int:
        """Return N: one token per feature."""
        return num_features

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the map at N places."""
        return map_flops(num_features, self._map)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d) and mask (B, N) -> tokens (B, N, D) and the same mask."""
        return self._map(zero_masked(features, mask)), mask


# --- masked grids ---


def masked_grid(
    features: Tensor, mask: Tensor, grid: Grid | None, name: str
) -> tuple[Tensor, Tensor]:
    """Turn (B, N, d) and its mask into x (B, d, h, w), zero in padding, and present (B, 1, h, w)."""
    x = to_grid(zero_masked(features, mask), grid, name)
    return x, to_grid(mask.unsqueeze(-1).to(x.dtype), grid, name)


def grid_tokens(x: Tensor, present: Tensor) -> Masked:
    """Turn x (B, C, h, w) and present into tokens (B, h * w, C) in reading order and their mask."""
    return x.flatten(2).transpose(1, 2), present.flatten(1) > 0


def pool_grid(x: Tensor, present: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Average the features present in each of ``side * side`` adaptive windows.

    A window without any feature gives zeros and is absent from the returned ``present``.
    """
    share = functional.adaptive_avg_pool2d(present, side)
    pooled = functional.adaptive_avg_pool2d(x, side) / torch.where(share > 0, share, 1.0)
    return pooled, (share > 0).to(x.dtype)


@dataclass(frozen=True)
class PoolOptions(TokenOptions):
    """Options of connectors that pool a grid to a square of tokens.

    Attributes:
        num_tokens: M, a square number no larger than the grid allows.
    """

    num_tokens: int = 144

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return 144 tokens (12 x 12), or fewer on a smaller grid."""
        side = square_side(cls().num_tokens, "pooling")
        return cls(min(side, *(widths.grid or (side,))) ** 2)

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return about N/4 tokens."""
        return cls(quarter_tokens(widths))


class PooledConnector(FixedLength):
    """A connector that pools a grid to ``side * side`` tokens.

    Raises:
        ConnectorError: there is no grid, M is not square, or its side is larger than the grid's.
    """

    family = "converter"
    needs_grid = True
    options_type = PoolOptions
    options: PoolOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        M = self.options.num_tokens
        require_positive(self.name, num_tokens=M)
        self.side = square_side(M, self.name)
        if widths.grid is not None and self.side > min(widths.grid):
            raise ConnectorError(
                f"connector {self.name!r} cannot pool a grid of {widths.grid} features "
                f"to {self.side} x {self.side} = {M} tokens; ask for fewer tokens"
            )


# --- folding neighbours into channels ---


def check_factor(factor: int, grid: Grid | None, name: str) -> None:
    """Raise ConnectorError unless ``factor`` divides both sides of the grid."""
    require_positive(name, factor=factor)
    if grid is not None and (grid[0] % factor or grid[1] % factor):
        raise ConnectorError(
            f"connector {name!r} cannot fold a grid of {grid[0]} x {grid[1]} features "
            f"by factor {factor}; the factor must divide both sides"
        )


def matched_factor(widths: Widths) -> int:
    """Return the factor nearest 2 that divides the grid: 2 (N/4), else 3 (N/9), else 1 (N)."""
    if widths.grid is None:
        return 2
    h, w = widths.grid
    return next((factor for factor in (2, 3) if h % factor == 0 and w % factor == 0), 1)


@dataclass(frozen=True)
class FactorOptions(Options):
    """Options of connectors that fold squares of neighbours.

    Attributes:
        factor: s, must divide both sides of the grid.
    """

    factor: int = 2

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return the factor nearest 2 that divides the grid."""
        return cls(matched_factor(widths))


def space_to_depth(
    features: Tensor, mask: Tensor, grid: Grid | None, factor: int, name: str
) -> Masked:
    """Fold ``factor * factor`` neighbours into channels.

    The channels of one output are ordered (row in block, column in block, feature), feature
    fastest: the order of Idefics3, SmolVLM, nanoVLM and InternVL. ``torch.pixel_unshuffle`` orders
    (feature, row, column) instead.

    Args:
        features: (B, N, d); arbitrary where ``mask`` is False, read as zeros.
        mask: (B, N) bool.
        grid: (h, w) with h * w == N.
        factor: s, must divide h and w.
        name: the connector, for error messages.

    Returns:
        (B, N / s^2, d * s^2) in reading order, and a mask that is True where any neighbour is.
    """
    x, present = masked_grid(features, mask, grid, name)
    check_factor(factor, (x.shape[2], x.shape[3]), name)
    return _fold(x, factor), _fold(present, factor).amax(dim=-1) > 0


def _fold(x: Tensor, s: int) -> Tensor:
    B, d, h, w = x.shape
    blocks = x.reshape(B, d, h // s, s, w // s, s)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(B, (h // s) * (w // s), s * s * d)


class FoldingConnector(PrefixConnector):
    """A connector that maps squares of ``factor * factor`` neighbours folded into channels.

    Raises:
        ConnectorError: there is no grid, or the factor does not divide it.
    """

    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "N/s^2"
    needs_grid = True
    options_type = FactorOptions
    options: FactorOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        check_factor(self.options.factor, widths.grid, self.name)
        self.folded_size = self.options.factor**2 * widths.feature_size

    def num_tokens(self, num_features: int) -> int:
        """Return ``N / s^2``."""
        return num_features // self.options.factor**2

    def fold(self, features: Tensor, mask: Tensor, grid: Grid | None) -> Masked:
        """Fold features (B, N, d) on ``grid`` to (B, N / s^2, s^2 d) and mask (B, N / s^2)."""
        return space_to_depth(features, mask, grid, self.options.factor, self.name)


# --- blocks of convolutional networks ---


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w), separately at each place ("LayerNorm2d")."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def depthwise_conv(channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Build a 3 x 3 convolution of each channel separately, with zero padding of 1."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=bias)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate read from their mean over features present (arXiv 1709.01507)."""

    def __init__(
        self, channels: int, squeezed: int, activation: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation
        self.excite = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """X (B, C, h, w), present (B, 1, h, w) -> (B, C, h, w)."""
        count = present.sum(dim=(2, 3), keepdim=True).clamp_min(1.0)
        mean = (x * present).sum(dim=(2, 3), keepdim=True) / count
        return x * self.gate(self.excite(self.activation(self.squeeze(mean))))
