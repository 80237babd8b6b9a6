"""Perceiver resampler: a fixed number of learnt latents reads the features by cross-attention.

    features (B, N, d) -> M latents (B, M, width) -> affine -> tokens (B, M, D)

Sources: Flamingo (arXiv 2204.14198), Honeybee's resampler baseline (arXiv 2312.06742),
Idefics2 (arXiv 2405.02246), IDEFICS (arXiv 2306.16527).

Three styles of one layer, ``x = x + attention(LN x, memory); x = x + FFN(LN x)``:

* ``flamingo``: the memory is [LN media; LN latents], all maps without bias, heads of fixed size
  (8 x 64); at a width other than d an affine map enters first.
* ``idefics``: as ``flamingo``, with ReLU for GELU, and a layer norm of each head's queries and keys.
* ``cross``: the memory is LN media alone, maps with bias, inner width = width. The latents never
  read each other.

Parameters, with w = width, i = heads * head size, f = FFN width, [.] only where it applies:
flamingo  M w + [d w + w] + layers * (4 w i + 2 w f + 6 w) + 2 w + (w D + D)
idefics   layers * 4 head size more
cross     M w + layers * (2 (w i + d i) + 3 i + w + 2 w f + f + w + 4 w + 2 d) + 2 w + (w D + D)

Published size: the prefix form, 6 cross layers of 1024 with an FFN of 4096, M = 64. Recipe of
Honeybee: connector alone on captions (batch 256, lr 3e-4), then with the language model (batch 128,
lr 2e-5).

Deliberate changes: no frame or media time embeddings (one item is one still set of features); the
affine map to D, which Flamingo does not need because its layers read the latents at width d.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    affine_parameters,
    full_mask,
    linear_flops,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.layers import Attention, FeedForward, heads_of, learnt

Style = Literal["flamingo", "idefics", "cross"]


class ResamplerLayer(nn.Module):
    """Latents read the media (and, but for the cross style, each other), then think."""

    def __init__(
        self,
        media_width: int,
        *,
        width: int,
        heads: int,
        head_size: int,
        ffn: int,
        style: Style,
    ) -> None:
        super().__init__()
        bias = style == "cross"
        self.mixes = not bias
        self.media_norm = nn.LayerNorm(media_width)
        self.latent_norm = nn.LayerNorm(width)
        idefics = style == "idefics"
        self.attention = Attention(width, heads, head_size, media_width, bias, norms=idefics)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, ffn, bias, nn.ReLU if idefics else nn.GELU)

    def forward(self, latents: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        """Latents (B, M, width), media (B, N, media_width), mask (B, N) -> latents."""
        queries, memory = self.latent_norm(latents), self.media_norm(media)
        if self.mixes:
            memory = torch.cat([memory, queries], 1)
            mask = torch.cat([mask, full_mask(queries)], 1)
        latents = latents + self.attention(queries, memory, mask.unsqueeze(1))
        return latents + self.ffn(self.ffn_norm(latents))


class ResamplerCore(nn.Module):
    """The resampler without its way out: (B, N, d) -> (B, M, width), layer-normed."""

    def __init__(
        self,
        feature_size: int,
        *,
        num_tokens: int,
        width: int,
        layers: int,
        heads: int,
        head_size: int,
        ffn: int,
        style: Style,
    ) -> None:
        super().__init__()
        mixes = style != "cross"
        enters = mixes and feature_size != width
        self.enter = nn.Linear(feature_size, width) if enters else nn.Identity()
        media_width = width if mixes else feature_size
        self.latents = learnt(num_tokens, width)
        self.layers = nn.ModuleList(
            ResamplerLayer(
                media_width, width=width, heads=heads, head_size=head_size, ffn=ffn, style=style
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features (B, N, d), mask (B, N) -> latents (B, M, width)."""
        media = self.enter(zero_masked(features, mask))
        latents = self.latents.repeat(len(features), 1, 1)
        for layer in self.layers:
            latents = layer(latents, media, mask)
        return self.norm(latents)

    @staticmethod
    def parameters_for(
        feature_size: int,
        *,
        num_tokens: int,
        width: int,
        layers: int,
        heads: int,
        head_size: int,
        ffn: int,
        style: Style,
    ) -> int:
        """Number of parameters; the module docstring writes the sum out."""
        mixes = style != "cross"
        media_width = width if mixes else feature_size
        enter = affine_parameters(feature_size, width) if mixes and feature_size != width else 0
        layer = (
            Attention.parameters_for(width, heads * head_size, media_width, bias=not mixes)
            + FeedForward.parameters_for(width, ffn, bias=not mixes)
            + 2 * (media_width + 2 * width)
            + (4 * head_size if style == "idefics" else 0)
        )
        return num_tokens * width + enter + layers * layer + 2 * width

    @staticmethod
    def flops_for(
        feature_size: int,
        *,
        num_features: int,
        num_tokens: int,
        width: int,
        layers: int,
        heads: int,
        head_size: int,
        ffn: int,
        style: Style,
    ) -> float:
        """FLOPs of one item with N features."""
        mixes = style != "cross"
        media_width = width if mixes else feature_size
        keys = num_features + (num_tokens if mixes else 0)
        enter = (
            linear_flops(num_features, feature_size, width)
            if mixes and feature_size != width
            else 0.0
        )
        layer = Attention.flops_for(
            num_tokens, keys, width, heads * head_size, media_width
        ) + FeedForward.flops_for(num_tokens, width, ffn)
        return enter + layers * layer


def _parameters(
    widths: Widths,
    *,
    num_tokens: int = 64,
    width: int = 1024,
    layers: int = 6,
    heads: int = 16,
    head_size: int = 64,
    ffn: int = 4096,
    style: Style = "cross",
) -> int:
    core = ResamplerCore.parameters_for(
        widths.feature_size,
        num_tokens=num_tokens,
        width=width,
        layers=layers,
        heads=heads,
        head_size=head_size,
        ffn=ffn,
        style=style,
    )
    return core + affine_parameters(width, widths.hidden_size)


class Resampler(PrefixConnector):
    """Learnt latents read the features; they become the tokens."""

    name = "resampler"
    family = "perceiver"
    group = "resampler"
    token_formula = "M"
    parameter_text = "layers * (2wi + 2di + 2wf) + Mw + wD"
    rate_scale = 0.3
    papers = (
        "Flamingo (arXiv 2204.14198)",
        "Honeybee (arXiv 2312.06742)",
        "Idefics2 (arXiv 2405.02246)",
    )

    def __init__(
        self,
        widths: Widths,
        *,
        num_tokens: int = 64,
        width: int = 1024,
        layers: int = 6,
        heads: int = 16,
        head_size: int = 64,
        ffn: int = 4096,
        style: Style = "cross",
    ) -> None:
        super().__init__(widths)
        self.tokens = num_tokens
        self.core_options: dict[str, Any] = {
            "num_tokens": num_tokens,
            "width": width,
            "layers": layers,
            "heads": heads,
            "head_size": head_size,
            "ffn": ffn,
            "style": style,
        }
        self.core = ResamplerCore(widths.feature_size, **self.core_options)
        self.project = nn.Linear(width, widths.hidden_size)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: Honeybee's 6 layers of 1024. Matched: 2 layers as wide as the LLM."""
        if variant == "published":
            return {
                "num_tokens": 64,
                "width": 1024,
                "layers": 6,
                "heads": 16,
                "head_size": 64,
                "ffn": 4096,
                "style": "cross",
            }
        width = min(widths.hidden_size, 1024)
        return {
            "num_tokens": quarter_tokens(widths),
            "width": width,
            "layers": 2,
            "heads": heads_of(width),
            "head_size": width // heads_of(width),
            "ffn": 4 * width,
            "style": "cross",
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """Core plus the affine map to D."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N is."""
        return self.tokens

    def flops(self, num_features: int) -> float:
        """Core plus the affine map to D."""
        d, D = self.widths.feature_size, self.widths.hidden_size
        core = ResamplerCore.flops_for(d, num_features=num_features, **self.core_options)
        return core + linear_flops(self.tokens, self.project.in_features, D)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        tokens = self.project(self.core(features, mask))
        return tokens, full_mask(tokens)
