"""Perceiver resampler: a fixed number of learnt latents read the features by cross-attention.

    features (B, N, d) -> M latents (B, M, width) -> affine -> tokens (B, M, D)

Sources: Flamingo (arXiv 2204.14198), Honeybee's resampler baseline (arXiv 2312.06742),
Idefics2 (arXiv 2405.02246), IDEFICS (arXiv 2306.16527).

Three styles of one layer, ``x = x + attention(LN x, memory); x = x + FFN(LN x)``:

* ``flamingo``: the memory is [LN media; LN latents]; all maps are without bias, heads of fixed size
  (8 x 64); at a width other than d an affine map comes first.
* ``idefics``: as ``flamingo``, with ReLU for GELU, and a layer norm of each head's queries and keys.
* ``cross``: the memory is LN media alone; maps have a bias, inner width = width. The latents never
  read each other.

Parameters, with w = width, i = heads * head size, f = FFN width, [.] only where it applies:
flamingo  M w + [d w + w] + layers * (4 w i + 2 w f + 6 w) + 2 w + (w D + D)
idefics   as flamingo, plus layers * 4 head size
cross     M w + layers * (2 (w i + d i) + 3 i + w + 2 w f + f + w + 4 w + 2 d) + 2 w + (w D + D)

Published size: the prefix form, 6 cross layers of 1024 with an FFN of 4096, M = 64. Recipe of
Honeybee: connector alone on captions (batch 256, lr 3e-4), then with the language model (batch 128,
lr 2e-5).

Deliberate changes: no frame or media time embeddings (one item is one still set of features); the
affine map to D, which Flamingo does not need because its layers read the latents at width d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import (
    FixedLength,
    Grid,
    Masked,
    TokenOptions,
    Widths,
    full_mask,
    map_flops,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.layers import Attention, FeedForward, heads_of, learnt, typed

Style = Literal["flamingo", "idefics", "cross"]


@dataclass(frozen=True)
class ResamplerOptions(TokenOptions):
    """Options of ``resampler``, and of the resamplers inside other connectors.

    Attributes:
        width: of the latents.
        layers: number of layers; each reads the features.
        heads: of every attention.
        head_size: of every head.
        ffn: hidden width of the feed-forward.
        style: of the layers, see the module's description.
    """

    width: int = 1024
    layers: int = 6
    heads: int = 16
    head_size: int = 64
    ffn: int = 4096
    style: Style = "cross"

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 2 layers as wide as the LLM."""
        width = min(widths.hidden_size, 1024)
        heads = heads_of(width)
        return cls(quarter_tokens(widths), width, 2, heads, width // heads, 4 * width)


class ResamplerLayer(nn.Module):
    """Attention of latents to the media (and, except in style ``cross``, to each other), then an FFN."""

    def __init__(self, media_width: int, options: ResamplerOptions) -> None:
        super().__init__()
        width, bias, idefics = options.width, options.style == "cross", options.style == "idefics"
        self.mixes = not bias
        self.media_norm = nn.LayerNorm(media_width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = Attention(
            width, options.heads, options.head_size, media_width, bias, norms=idefics
        )
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, options.ffn, bias, nn.ReLU if idefics else nn.GELU)

    def forward(self, latents: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        """Latents (B, M, width), media (B, N, media_width), mask (B, N) -> latents."""
        queries, memory = self.latent_norm(latents), self.media_norm(media)
        if self.mixes:
            memory = torch.cat([memory, queries], 1)
            mask = torch.cat([mask, full_mask(queries)], 1)
        latents = latents + self.attention(queries, memory, mask.unsqueeze(1))
        return latents + self.ffn(self.ffn_norm(latents))

    def flops(self, tokens: int, num_features: int) -> float:
        """Return the FLOPs of M latents that read one item with N features."""
        keys = num_features + (tokens if self.mixes else 0)
        return self.attention.flops(tokens, keys) + map_flops(tokens, self.ffn)


class ResamplerCore(nn.Module):
    """The resampler without its output map: (B, N, d) -> (B, M, width), layer-normed."""

    def __init__(self, feature_size: int, options: ResamplerOptions) -> None:
        super().__init__()
        self.options, width = options, options.width
        mixes = options.style != "cross"
        enters = mixes and feature_size != width
        self.enter = nn.Linear(feature_size, width) if enters else nn.Identity()
        media_width = width if mixes else feature_size
        self.latents = learnt(options.num_tokens, width)
        self.layers = nn.ModuleList(
            ResamplerLayer(media_width, options) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features (B, N, d), mask (B, N) -> latents (B, M, width)."""
        media = self.enter(zero_masked(features, mask))
        latents = self.latents.repeat(len(features), 1, 1)
        for layer in self.layers:
            latents = layer(latents, media, mask)
        return self.norm(latents)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of one item with N features."""
        layers = typed(self.layers, ResamplerLayer)
        read = sum(layer.flops(self.options.num_tokens, num_features) for layer in layers)
        return map_flops(num_features, self.enter) + read


class Resampler(FixedLength):
    """Learnt latents read the features; they become the tokens."""

    name = "resampler"
    family = "perceiver"
    group = "resampler"
    parameter_text = "layers * (2wi + 2di + 2wf) + Mw + wD"
    rate_scale = 0.3
    papers = (
        "Flamingo (arXiv 2204.14198)",
        "Honeybee (arXiv 2312.06742)",
        "Idefics2 (arXiv 2405.02246)",
    )
    options_type = ResamplerOptions
    options: ResamplerOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.core = ResamplerCore(widths.feature_size, self.options)
        self.project = nn.Linear(self.options.width, widths.hidden_size)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the core and the affine map to D."""
        out = map_flops(self.options.num_tokens, self.project)
        return self.core.flops(num_features) + out

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        tokens = self.project(self.core(features, mask))
        return tokens, full_mask(tokens)
