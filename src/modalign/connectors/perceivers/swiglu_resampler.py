"""SwiGLU resampler: the resampler in the form of a language model's own layers, as in Idefics2.

    features (B, N, d) -> SwiGLU -> (B, N, D) -> M latents (B, M, D) read them -> RMSNorm -> tokens

Source: Idefics2 (arXiv 2405.02246). ``x = x + attention(norm x, [norm media; norm x])`` and
``x = x + SwiGLU(norm x)``, with RMSNorm, grouped-query attention (G key and value heads for H query
heads) and no biases. The latents are as wide as the language model, so nothing follows them.

Parameters, with h = hidden width of the first SwiGLU, f of the others, c = head size:
2 d h + h D + M D + layers * (2 D H c + 2 D G c + 3 D f + 3 D) + D

Published size: 64 latents, 3 layers, 16 heads of 96 over 4, f = 4 D, h = the language model's own
(3.5 D in Mistral 7B). Recipe of the paper: connector and LoRA on both neighbours, 1 B pairs, then
instruction tuning.

It exports to transformers' Idefics2, which has h of the language model and f = 4 D: narrower ones
are filled up with zeros there, which changes nothing.

Deliberate changes: latents start from N(0, 0.02) (theirs from ones).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modalign.connectors.base import (
    ConnectorError,
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    attention_flops,
    full_mask,
    linear_flops,
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
)

NORM_EPS = 1e-6


class GroupedLayer(nn.Module):
    """Latents read the media and each other by grouped-query attention, then think."""

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


def _parameters(
    widths: Widths,
    *,
    num_tokens: int = 64,
    hidden: int = 14336,
    layers: int = 3,
    heads: int = 16,
    head_size: int = 96,
    kv_heads: int = 4,
    ffn: int = 16384,
) -> int:
    d, D = widths.feature_size, widths.hidden_size
    attention = 2 * D * heads * head_size + 2 * D * kv_heads * head_size
    layer = attention + SwiGLU.parameters_for(D, ffn, D) + 3 * D
    return SwiGLU.parameters_for(d, hidden, D) + num_tokens * D + layers * layer + D


class SwigluResampler(PrefixConnector):
    """Learnt latents of the language model's width read the features; they are the tokens.

    Args:
        widths: the neighbours; no grid is needed.
        num_tokens: M.
        hidden: h, of the SwiGLU that brings features to the language model's width.
        layers: each reads the features.
        heads: H.
        head_size: c.
        kv_heads: G, must divide H.
        ffn: f, of the SwiGLU of every layer.

    Raises:
        ConnectorError: G does not divide H.
    """

    name = "swiglu_resampler"
    family = "perceiver"
    group = "resampler"
    token_formula = "M"
    parameter_text = "2dh + hD + MD + layers * (2DHc + 2DGc + 3Df)"
    rate_scale = 0.3
    papers = ("Idefics2 (arXiv 2405.02246)",)
    export_target = "Idefics2"

    def __init__(
        self,
        widths: Widths,
        *,
        num_tokens: int = 64,
        hidden: int = 14336,
        layers: int = 3,
        heads: int = 16,
        head_size: int = 96,
        kv_heads: int = 4,
        ffn: int = 16384,
    ) -> None:
        super().__init__(widths)
        if kv_heads < 1 or heads % kv_heads:
            raise ConnectorError(
                f"connector {self.name!r} shares {kv_heads} key and value heads among {heads} "
                "query heads; kv_heads must divide heads"
            )
        self.shape = (num_tokens, hidden, layers, heads, head_size, kv_heads, ffn)
        D = widths.hidden_size
        self.enter = SwiGLU(widths.feature_size, hidden, D)
        self.latents = learnt(num_tokens, D)
        self.layers = nn.ModuleList(
            GroupedLayer(D, heads, head_size, kv_heads, ffn) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(D, eps=NORM_EPS)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: Idefics2's. Matched: 2 layers, heads of the LLM's size, an FFN of 8 D / 3."""
        D = widths.hidden_size
        if variant == "published":
            return {
                "num_tokens": 64,
                "hidden": 7 * D // 2,
                "layers": 3,
                "heads": 16,
                "head_size": 96,
                "kv_heads": 4,
                "ffn": 4 * D,
            }
        heads = heads_of(D)
        return {
            "num_tokens": quarter_tokens(widths),
            "hidden": D,
            "layers": 2,
            "heads": heads,
            "head_size": D // heads,
            "kv_heads": next(n for n in range(max(1, heads // 4), 0, -1) if heads % n == 0),
            "ffn": 8 * D // 3,
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """The sum of the module docstring."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N is."""
        return self.shape[0]

    def flops(self, num_features: int) -> float:
        """Features to D, then per layer projections, attention over [media; latents] and FFN."""
        M, hidden, layers, heads, head_size, kv_heads, ffn = self.shape
        d, D = self.widths.feature_size, self.widths.hidden_size
        keys, inner = num_features + M, heads * head_size
        layer = (
            2 * linear_flops(M, D, inner)
            + 2 * linear_flops(keys, D, kv_heads * head_size)
            + attention_flops(M, keys, inner)
            + SwiGLU.flops_for(M, D, ffn, D)
        )
        return SwiGLU.flops_for(num_features, d, hidden, D) + layers * layer

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        media = self.enter(zero_masked(features, mask))
        latents = self.latents.repeat(len(features), 1, 1)
        for layer in self.layers:
            latents = layer(latents, media, mask)
        tokens = self.norm(latents)
        return tokens, full_mask(tokens)
