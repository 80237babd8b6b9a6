"""SwiGLU resampler: the resampler in the form of a language model's own layers, as in Idefics2.

    features (B, N, d) -> SwiGLU -> (B, N, D) -> M latents (B, M, D) read them -> RMSNorm -> tokens

Source: Idefics2 (arXiv 2405.02246). ``x = x + attention(norm x, [norm media; norm x])`` and
``x = x + SwiGLU(norm x)``, with RMSNorm, grouped-query attention (G key and value heads for H query
heads) and no biases. The latents are as wide as the language model, so no output map follows them.

Parameters, with h = hidden width of the first SwiGLU, f of the others, c = head size:
2 d h + h D + M D + layers * (2 D H c + 2 D G c + 3 D f + 3 D) + D

Published size: 64 latents, 3 layers, 16 heads of 96 over 4, f = 4 D, h = the language model's own
(3.5 D in Mistral 7B). Recipe of the paper: connector and LoRA on both neighbours, 1 B pairs, then
instruction tuning.

It exports to transformers' Idefics2, which has the language model's h and f = 4 D: narrower ones
are filled up with zeros, which does not change the output.

Deliberate changes: latents start from N(0, 0.02) (Idefics2's from ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import (
    ConnectorError,
    FixedLength,
    Grid,
    Masked,
    TokenOptions,
    Widths,
    attention_flops,
    full_mask,
    map_flops,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.layers import (
    SwiGLU,
    attend,
    heads_of,
    learnt,
    merge_heads,
    split_heads,
    typed,
)

NORM_EPS = 1e-6


class GroupedLayer(nn.Module):
    """Grouped-query attention of latents to the media and each other, then an FFN."""

    def __init__(self, width: int, heads: int, head_size: int, kv_heads: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.latent_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.media_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.q = nn.Linear(width, heads * head_size, bias=False)
        self.k = nn.Linear(width, kv_heads * head_size, bias=False)
        self.v = nn.Linear(width, kv_heads * head_size, bias=False)
        self.out = nn.Linear(heads * head_size, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn = SwiGLU(width, ffn, width)

    def forward(self, latents: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        """Latents (B, M, w), media (B, N, w), mask (B, N) -> latents."""
        queries = self.latent_norm(latents)
        memory = torch.cat([self.media_norm(media), queries], 1)
        mask = torch.cat([mask, full_mask(queries)], 1)
        group = self.heads // self.kv_heads
        k, v = (
            split_heads(each(memory), self.kv_heads).repeat_interleave(group, dim=1)
            for each in (self.k, self.v)
        )
        read = attend(split_heads(self.q(queries), self.heads), k, v, mask.unsqueeze(1))
        latents = latents + self.out(merge_heads(read))
        return latents + self.ffn(self.ffn_norm(latents))

    def flops(self, tokens: int, num_features: int) -> float:
        """Return the FLOPs of M latents that read one item with N features, and each other."""
        keys = num_features + tokens
        maps = map_flops(tokens, self.q, self.out, self.ffn) + map_flops(keys, self.k, self.v)
        return maps + attention_flops(tokens, keys, self.q.out_features)


@dataclass(frozen=True)
class SwigluResamplerOptions(TokenOptions):
    """Options of ``swiglu_resampler``; the defaults are Idefics2's, whose language model is Mistral 7B.

    Attributes:
        hidden: h, of the SwiGLU that maps features to the language model's width.
        layers: number of layers; each reads the features.
        heads: H.
        head_size: c.
        kv_heads: G, must divide H.
        ffn: f, of the SwiGLU of every layer.
    """

    hidden: int = 14336
    layers: int = 3
    heads: int = 16
    head_size: int = 96
    kv_heads: int = 4
    ffn: int = 16384

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return Idefics2's options, with SwiGLUs that follow the LLM's width."""
        return cls(hidden=7 * widths.hidden_size // 2, ffn=4 * widths.hidden_size)

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 2 layers, heads of the LLM's size and an FFN of 8 D / 3."""
        D, heads = widths.hidden_size, heads_of(widths.hidden_size)
        kv_heads = next(n for n in range(max(1, heads // 4), 0, -1) if heads % n == 0)
        return cls(quarter_tokens(widths), D, 2, heads, D // heads, kv_heads, 8 * D // 3)


class SwigluResampler(FixedLength):
    """Learnt latents as wide as the language model read the features and are the tokens.

    Raises:
        ConnectorError: G does not divide H.
    """

    name = "swiglu_resampler"
    family = "perceiver"
    group = "resampler"
    parameter_text = "2dh + hD + MD + layers * (2DHc + 2DGc + 3Df)"
    rate_scale = 0.3
    papers = ("Idefics2 (arXiv 2405.02246)",)
    export_target = "Idefics2"
    options_type = SwigluResamplerOptions
    options: SwigluResamplerOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen = self.options
        heads, kv_heads = chosen.heads, chosen.kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ConnectorError(
                f"connector {self.name!r} shares {kv_heads} key and value heads among {heads} "
                "query heads; kv_heads must divide heads"
            )
        D = widths.hidden_size
        self.enter = SwiGLU(widths.feature_size, chosen.hidden, D)
        self.latents = learnt(chosen.num_tokens, D)
        self.layers = nn.ModuleList(
            GroupedLayer(D, heads, chosen.head_size, kv_heads, chosen.ffn)
            for _ in range(chosen.layers)
        )
        self.norm = nn.RMSNorm(D, eps=NORM_EPS)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of mapping features to D, then per layer projections, attention and FFN."""
        layers = typed(self.layers, GroupedLayer)
        read = sum(layer.flops(self.options.num_tokens, num_features) for layer in layers)
        return map_flops(num_features, self.enter) + read

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        media = self.enter(zero_masked(features, mask))
        latents = self.latents.repeat(len(features), 1, 1)
        for layer in self.layers:
            latents = layer(latents, media, mask)
        tokens = self.norm(latents)
        return tokens, full_mask(tokens)
