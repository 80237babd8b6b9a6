"""D-Abstractor: queries that start as the pooled feature map read it by deformable attention.

    features (B, h*w, d) -> [affine] -> + positions -> pool to sqrt(M) x sqrt(M)
    -> layers of (self-attention, deformable attention, FFN), post-norm -> affine -> (B, M, D)

Source: Honeybee (arXiv 2312.06742), on the decoder of Deformable DETR (arXiv 2010.04159). Each head
of each query reads ``points`` places, its reference point plus computed offsets, bilinearly.

Parameters, with w = width, H = heads, P = points, f = FFN width, [.] only where d != w:
[d w + w] + N w + M w + 2 M + layers * (4 (w^2 + w) + 2 (w^2 + w) + 3 H P (w + 1)
+ 2 w f + f + w + 6 w) + w D + D

Published size: 6 layers of 1024, 8 heads, 4 points, FFN 1024 (Deformable DETR's default), M = 144.
Recipe: connector alone (50 k steps, batch 256, lr 3e-4; released configuration 1e-4), then with the
language model (batch 128, lr 2e-5).

Deliberate changes: one feature level; reference points start on the centres of the pooled cells
(the release spreads them from border to border); positions are resized to grids other than the
encoder's own; pooling averages over real features only; no dropout; no extra learnt tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import (
    FixedLength,
    Grid,
    Masked,
    TokenOptions,
    Widths,
    full_mask,
    map_flops,
    quarter_tokens,
    square_side,
    to_grid,
    zero_masked,
)
from modalign.connectors.layers import Attention, FeedForward, heads_of, learnt, typed


def sample_points(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Read a feature map at fractional places, and sum what was read.

    Args:
        values: (B, H, c, h, w), a map per head.
        locations: (B, M, H, P, 2), (x, y) with 0 and 1 at the borders of the map; 0 is read outside.
        weights: (B, M, H, P).

    Returns:
        (B, M, H * c).
    """
    B, H = values.shape[:2]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    # In single precision, since half a pixel of a 24 x 24 map is close to the resolution of bfloat16.
    read = functional.grid_sample(values.flatten(0, 1).float(), grid.float(), align_corners=False)
    scaled = read * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    return scaled.sum(-1).unflatten(0, (B, H)).flatten(1, 2).transpose(1, 2).to(values.dtype)


class DeformableAttention(nn.Module):
    """Every head of every query reads ``points`` places near the query's reference point."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._start()

    def _start(self) -> None:
        """Start as in Deformable DETR: head h looks in direction h, point p at distance p + 1."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1).view(1, -1, 1)
        with torch.no_grad():
            self.offsets.bias.copy_((directions.unsqueeze(1) * distances).flatten())

    def forward(self, queries: Tensor, references: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        """Queries (B, M, w), references (M, 2), media (B, w, *grid), mask (B, N) -> (B, M, w)."""
        grid = (media.shape[2], media.shape[3])
        values = zero_masked(self.value(media.flatten(2).transpose(1, 2)), mask)
        values = values.transpose(1, 2).unflatten(1, (self.heads, -1)).unflatten(-1, grid)
        offsets = self.offsets(queries).unflatten(-1, (self.heads, self.points, 2))
        weights = self.weights(queries).unflatten(-1, (self.heads, self.points)).softmax(-1)
        pixels = references.new_tensor([grid[1], grid[0]])
        locations = references[:, None, None, :] + offsets / pixels
        return self.out(sample_points(values, locations, weights))


class DAbstractorLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the media, FFN; post-norm."""

    def __init__(self, width: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.deformable = DeformableAttention(width, heads, points)
        self.deformable_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, ffn, activation=nn.ReLU)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, media: Tensor, mask: Tensor
    ) -> Tensor:
        """X (B, M, w) -> (B, M, w); positions are added to queries and keys, but not to values."""
        placed = x + positions
        x = self.attention_norm(x + self.attention(placed, placed, values=x))
        x = self.deformable_norm(x + self.deformable(x + positions, references, media, mask))
        return self.ffn_norm(x + self.ffn(x))

    def flops(self, tokens: int, num_features: int) -> float:
        """Return the FLOPs of M queries and N features; the bilinear reading is not counted."""
        reading = self.deformable
        looking = map_flops(tokens, reading.offsets, reading.weights, reading.out, self.ffn)
        return (
            self.attention.flops(tokens, tokens) + map_flops(num_features, reading.value) + looking
        )


@dataclass(frozen=True)
class DAbstractorOptions(TokenOptions):
    """Options of ``d_abstractor``.

    Attributes:
        num_tokens: M, a square number.
        width: of the queries.
        layers: each reads the feature map.
        heads: of every attention.
        points: places that each head of a query reads.
        ffn: hidden width of the feed-forward.
    """

    num_tokens: int = 144
    width: int = 1024
    layers: int = 6
    heads: int = 8
    points: int = 4
    ffn: int = 1024

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 2 layers as wide as the LLM."""
        width = min(widths.hidden_size, 1024)
        return cls(quarter_tokens(widths), width, 2, heads_of(width), ffn=width)


class DAbstractor(FixedLength):
    """Pooled features as queries, refined by deformable attention to the feature map."""

    name = "d_abstractor"
    family = "perceiver"
    group = "customised perceiver"
    token_formula = "M (a square)"
    parameter_text = "layers * (6w^2 + 2wf) + (N + M)w + wD"
    rate_scale = 0.3
    papers = ("Honeybee (arXiv 2312.06742)",)
    needs_grid = True
    options_type = DAbstractorOptions
    options: DAbstractorOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen = self.options
        num_tokens, width = chosen.num_tokens, chosen.width
        self.side = square_side(num_tokens, self.name)
        same = widths.feature_size == width
        self.enter = nn.Identity() if same else nn.Linear(widths.feature_size, width)
        self.media_positions = learnt(widths.num_features, width)
        self.query_positions = learnt(num_tokens, width)
        centres = (torch.arange(self.side) + 0.5) / self.side
        places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
        self.references = nn.Parameter(places.reshape(num_tokens, 2))
        self.layers = nn.ModuleList(
            DAbstractorLayer(width, chosen.heads, chosen.points, chosen.ffn)
            for _ in range(chosen.layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of matrix products and attention; bilinear reading is elementwise and not counted."""
        tokens = self.options.num_tokens
        layers = typed(self.layers, DAbstractorLayer)
        ends = map_flops(num_features, self.enter) + map_flops(tokens, self.project)
        return ends + sum(layer.flops(tokens, num_features) for layer in layers)

    def _positions(self, grid: Grid) -> Tensor:
        """Return the learnt positions as a map (1, width, h, w), resized if the grid is another."""
        own = self.widths.grid
        assert own is not None  # __init__ refuses widths without a grid
        table = self.media_positions.T.unflatten(-1, own).unsqueeze(0)
        if grid == own:
            return table
        return functional.interpolate(table, size=grid, mode="bilinear", align_corners=False)

    def _pool(self, media: Tensor, mask: Tensor) -> Tensor:
        """Average over the real features of each cell; a cell without any starts at zero."""
        size = (self.side, self.side)
        share = functional.adaptive_avg_pool2d(mask.to(media.dtype), size)
        pooled = functional.adaptive_avg_pool2d(media * mask, size)
        return (pooled / share.clamp(min=1e-6)).flatten(2).transpose(1, 2)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """(B, N, d), (B, N), grid -> (B, M, D), (B, M)."""
        media = to_grid(self.enter(zero_masked(features, mask)), grid, self.name)
        size = (media.shape[2], media.shape[3])
        media = media + self._positions(size)
        x = self._pool(media, mask.view(-1, 1, *size))
        for layer in self.layers:
            x = layer(x, self.query_positions, self.references, media, mask)
        tokens = self.project(x)
        return tokens, full_mask(tokens)
