"""Idefics cross-attention: gated blocks in the form of a LLaMA layer, as in transformers' Idefics.

    features (B, N, d) [-> resampler -> M latents (B, M, d)] -> keys and values of every block
    hidden (B, T, D) -> x + tanh(a) attention(norm x, media) -> x + tanh(b) SwiGLU(norm x) -> layer

Sources: IDEFICS in OBELICS (arXiv 2306.16527), after Flamingo (arXiv 2204.14198). What differs from
``gated_cross_attention``: RMSNorm and SwiGLU, an RMSNorm of each head's queries and keys, a block
before the first layer of each group of ``every``, and a resampler that can be left out (then M = N).
A position reads the last item before it. A position without one gets nothing from the attention, but
its SwiGLU runs, even in plain text: the trained blocks change every text, not only those with media.

Parameters, with c = head size, i = heads * c, f = ffn, G = D gates, or 1 with ``gate`` "scalar":
[resampler] + (L / every) * (2 D i + 2 d i + 3 D f + 2 D + 2 c + 2 G)

Published size: a block before every 4th layer, scalar gates, attention as wide as the language
model, f as in LLaMA, 64 latents from a resampler of 6 layers with 16 heads of 96. Recipe: resampler
and blocks train on web documents, image-text pairs and Wikipedia; both neighbours stay frozen, and
are tuned with them on instructions later.

Deliberate changes: the keys and values of all blocks are computed once per item, in ``encode``, and
passed on as the memory; ``every`` must divide L (theirs fails in the last group otherwise), so the
nearest divisor is taken for other L.

It exports to transformers' IdeficsForVisionText2Text, whose blocks have the decoder's own head size
and ``norm_eps`` (1e-5 in many LLaMA models); fewer heads and a narrower SwiGLU are filled up with
zeros. This needs a LLaMA decoder without grouped keys and a CLIP tower read at ``all``. The class's
own processor adds marks to every prompt, so the folder has a different one (docs/export.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import ConnectorError, Options, Widths, quarter_tokens
from modalign.connectors.layers import SwiGLU, attend, heads_of, merge_heads, split_heads
from modalign.connectors.perceivers.inserted_blocks import InsertedBlock, InsertedBlocks
from modalign.connectors.perceivers.resampler import ResamplerCore, ResamplerOptions

NORM_EPS = 1e-6
Gate = Literal["scalar", "vector"]


class IdeficsBlock(InsertedBlock):
    """Gated attention to the item that is seen, then a gated SwiGLU, which runs everywhere."""

    ffn: SwiGLU

    def __init__(
        self,
        hidden_size: int,
        memory_width: int,
        heads: int,
        head_size: int,
        ffn: int,
        gates: int,
        eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        inner = heads * head_size
        self.heads = heads
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.q = nn.Linear(hidden_size, inner, bias=False)
        self.kv = nn.Linear(memory_width, 2 * inner, bias=False)
        self.q_norm = nn.RMSNorm(head_size, eps=eps)
        self.k_norm = nn.RMSNorm(head_size, eps=eps)
        self.out = nn.Linear(inner, hidden_size, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(gates))
        self.ffn_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.ffn = SwiGLU(hidden_size, ffn, hidden_size)
        self.ffn_gate = nn.Parameter(torch.zeros(gates))

    def keys_values(self, media: Tensor) -> Tensor:
        """(B, M, d) -> (B, M, 2 i)."""
        keys, values = self.kv(media).chunk(2, -1)
        keys = merge_heads(self.k_norm(split_heads(keys, self.heads)))
        return torch.cat([keys, values], -1)

    def forward(self, hidden: Tensor, keys_values: Tensor, allowed: Tensor) -> Tensor:
        """Return what to add to hidden (B, T, D); keys_values (B, K, 2 i), allowed (B, T, K)."""
        x = hidden.to(self.norm.weight.dtype)
        q = self.q_norm(split_heads(self.q(self.norm(x)), self.heads))
        k, v = (split_heads(half, self.heads) for half in keys_values.to(q.dtype).chunk(2, -1))
        found = self.out(merge_heads(attend(q, k, v, allowed))) * self.attention_gate.tanh()
        return found + self.alone(x + found)

    def alone(self, hidden: Tensor) -> Tensor:
        """Return what the SwiGLU adds to hidden (B, T, D)."""
        x = hidden.to(self.norm.weight.dtype)
        return self.ffn(self.ffn_norm(x)) * self.ffn_gate.tanh()


@dataclass(frozen=True)
class IdeficsCrossAttentionOptions(Options):
    """Options of ``idefics_cross_attention``.

    Attributes:
        every: n, decoder layers per block; must divide L.
        heads: of a block's attention.
        head_size: c.
        ffn: f.
        gate: ``scalar``, one number for all of D, or ``vector``, one for each.
        resampler: options by the names of ``ResamplerOptions``; None for no resampler.
        norm_eps: of the blocks' norms.
    """

    every: int = 4
    heads: int = 32
    head_size: int = 128
    ffn: int = 11008
    gate: Gate = "scalar"
    resampler: dict[str, Any] | None = None
    norm_eps: float = NORM_EPS

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return the options of the 9 B model, with attention and SwiGLU as wide as this language model's."""
        D = widths.hidden_size
        heads = widths.num_heads if D % widths.num_heads == 0 else heads_of(D)
        return cls(
            every=_divisor(widths, 4),
            heads=heads,
            head_size=D // heads,
            ffn=-(-8 * D // 768) * 256,  # LLaMA's: 8 D / 3, rounded up to a multiple of 256
            resampler={"num_tokens": 64, "layers": 6, "heads": 16, "head_size": 96},
        )

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return about four blocks, one resampler layer and a narrow SwiGLU."""
        D, heads = widths.hidden_size, heads_of(widths.feature_size)
        return cls(
            every=_divisor(widths, max(1, widths.num_layers // 4)),
            heads=4,
            head_size=min(64, max(8, D // 8)),
            ffn=-(-4 * D // 3),
            resampler={
                "num_tokens": quarter_tokens(widths),
                "layers": 1,
                "heads": heads,
                "head_size": widths.feature_size // heads,
            },
        )


class IdeficsCrossAttention(InsertedBlocks):
    """Media read by gated LLaMA-like blocks before the first layer of every group."""

    name = "idefics_cross_attention"
    family = "perceiver"
    group = "gated cross-attention"
    token_formula = "0"
    parameter_text = "[resampler] + (L/n) * (2Di + 2di + 3Df)"
    rate_scale = 0.3
    papers = ("IDEFICS (arXiv 2306.16527)", "Flamingo (arXiv 2204.14198)")
    export_target = "Idefics"
    options_type = IdeficsCrossAttentionOptions
    options: IdeficsCrossAttentionOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen, d, D = self.options, widths.feature_size, widths.hidden_size
        if chosen.gate not in ("scalar", "vector"):
            raise ConnectorError(
                f"connector {self.name!r} has a 'scalar' or 'vector' gate, not {chosen.gate!r}"
            )
        if chosen.every not in _divisors(widths):
            possible = ", ".join(map(str, _divisors(widths))) or "nothing"
            raise ConnectorError(
                f"connector {self.name!r} puts a block before the first of every {chosen.every} decoder "
                f"layers, but the language model has {widths.num_layers}; `every` can be {possible}"
            )
        gates = D if chosen.gate == "vector" else 1
        self.norm_eps = float(chosen.norm_eps)  # YAML reads 1e-5 as a string
        self.resampler = None
        if chosen.resampler is not None:
            own = {"width": d, "ffn": 4 * d, "style": "idefics", **chosen.resampler}
            self.resampler = ResamplerCore(d, ResamplerOptions.of(self.name, own))
        self.places = range(0, widths.num_layers, chosen.every)
        self.blocks = nn.ModuleList(
            IdeficsBlock(D, d, chosen.heads, chosen.head_size, chosen.ffn, gates, self.norm_eps)
            for _ in self.places
        )


def _divisors(widths: Widths) -> list[int]:
    layers = widths.num_layers
    return [number for number in range(1, layers + 1) if layers % number == 0]


def _divisor(widths: Widths, wanted: int) -> int:
    """Return the divisor of L nearest ``wanted``, the smaller of two; ``wanted`` without a language model."""
    return min(_divisors(widths), key=lambda each: abs(each - wanted), default=wanted)
