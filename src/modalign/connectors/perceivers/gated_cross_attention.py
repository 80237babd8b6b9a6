"""Gated cross-attention: new blocks between the decoder layers read resampled features.

    features (B, N, d) -> resampler -> M latents (B, M, w) -> keys and values of every block
    hidden (B, T, D) -> x + tanh(a) attention(LN x, latents) -> x + tanh(b) FFN(LN x) -> layer

Source: Flamingo (arXiv 2204.14198), OpenFlamingo (arXiv 2308.01390). There is a block before every
``every``-th decoder layer (the last of each group); a = b = 0 at the start, so the language model
is unchanged. A position reads the last item before it; a position without one gets nothing from
either half of the block.

Parameters, with w = width of the resampler, i = heads * head size, F = ffn_factor:
resampler (see resampler.py) + floor(L / every) * (2 D i + 2 w i + 2 F D^2 + 4 D + 2)

Published size: resampler of 6 layers at width d with 64 latents, blocks of 8 heads x 64 with an FFN
of 4 D before every 4th layer. Recipe: resampler, blocks and the marks' embeddings train, language
model and encoder frozen.

Deliberate changes: the keys and values of all blocks are computed once per item, in ``encode``, and
passed on as the memory, so that decoding a token does not compute them again; a block's FFN
leaves positions without an item alone (Flamingo's runs on them too).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import ConnectorError, Options, Widths, quarter_tokens
from modalign.connectors.layers import FeedForward, attend, heads_of, merge_heads, split_heads
from modalign.connectors.perceivers.inserted_blocks import InsertedBlock, InsertedBlocks
from modalign.connectors.perceivers.resampler import ResamplerCore, ResamplerOptions


class GatedBlock(InsertedBlock):
    """Gated attention to an item, then a gated feed-forward; positions without an item get nothing."""

    def __init__(self, hidden_size: int, memory_width: int, heads: int, inner: int, ffn: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden_size)
        self.q = nn.Linear(hidden_size, inner, bias=False)
        self.kv = nn.Linear(memory_width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, hidden_size, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, ffn, bias=False)
        self.ffn_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, keys_values: Tensor, allowed: Tensor) -> Tensor:
        """Return what to add to hidden (B, T, D); keys_values (B, K, 2 i), allowed (B, T, K)."""
        seen = allowed.any(-1, keepdim=True)
        x = hidden.to(self.norm.weight.dtype)
        q = split_heads(self.q(self.norm(x)), self.heads)
        k, v = (split_heads(half, self.heads) for half in keys_values.to(q.dtype).chunk(2, -1))
        read = self.out(merge_heads(attend(q, k, v, allowed))) * self.attention_gate.tanh()
        thought = self.ffn(self.ffn_norm(x + read)) * self.ffn_gate.tanh()
        return (read + thought).masked_fill(~seen, 0.0)


@dataclass(frozen=True)
class GatedCrossAttentionOptions(Options):
    """Options of ``gated_cross_attention``.

    Attributes:
        every: n, decoder layers per block.
        heads: of a block's attention.
        head_size: of every head.
        ffn_factor: F, hidden width of a block's feed-forward divided by D.
        resampler: options that differ from Flamingo's, by the names of ``ResamplerOptions``.
    """

    every: int = 4
    heads: int = 8
    head_size: int = 64
    ffn_factor: int = 4
    resampler: dict[str, Any] | None = None

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return Flamingo's options."""
        return cls(resampler=_flamingo_resampler(widths))

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return four blocks, one resampler layer and half the FFN."""
        width = min(widths.hidden_size, widths.feature_size)
        heads = heads_of(width)
        resampler = ResamplerOptions(
            quarter_tokens(widths), width, 1, heads, width // heads, 4 * width, "flamingo"
        )
        every = max(1, widths.num_layers // 4)
        head_size = min(64, max(8, widths.hidden_size // 8))
        return cls(every, 4, head_size, 2, asdict(resampler))


class GatedCrossAttention(InsertedBlocks):
    """Resampled features, read by gated blocks before every n-th decoder layer."""

    name = "gated_cross_attention"
    family = "perceiver"
    group = "gated cross-attention"
    token_formula = "0"
    parameter_text = "resampler + (L/n) * (2Di + 2wi + 2FD^2)"
    rate_scale = 0.3
    papers = ("Flamingo (arXiv 2204.14198)", "OpenFlamingo (arXiv 2308.01390)")
    options_type = GatedCrossAttentionOptions
    options: GatedCrossAttentionOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen, D = self.options, widths.hidden_size
        resampler = ResamplerOptions.of(
            self.name, _flamingo_resampler(widths) | (chosen.resampler or {})
        )
        count = widths.num_layers // chosen.every
        if count < 1:
            raise ConnectorError(
                f"connector {self.name!r} puts a block before every {chosen.every}th decoder layer, "
                f"but the language model has {widths.num_layers}; lower `every`"
            )
        inner, ffn = chosen.heads * chosen.head_size, chosen.ffn_factor * D
        self.resampler = ResamplerCore(widths.feature_size, resampler)
        self.blocks = nn.ModuleList(
            GatedBlock(D, resampler.width, chosen.heads, inner, ffn) for _ in range(count)
        )
        self.places = range(chosen.every - 1, len(self.blocks) * chosen.every, chosen.every)


def _flamingo_resampler(widths: Widths) -> dict[str, Any]:
    d = widths.feature_size
    return asdict(ResamplerOptions(64, d, 6, 8, 64, 4 * d, "flamingo"))
