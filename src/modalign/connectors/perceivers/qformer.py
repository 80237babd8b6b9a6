"""Q-Former: learnt queries in a BERT-like transformer read the features by cross-attention.

    features (B, N, d) -> M queries (B, M, width) -> affine -> tokens (B, M, D)

Source: BLIP-2 (arXiv 2301.12597). Post-norm layers: self-attention of the queries, in every
``cross_every``-th layer (the first included) cross-attention to the features, feed-forward.

Parameters, with w = width, f = FFN width, X = ceil(layers / cross_every):
M w + 2 w + layers * (4 (w^2 + w) + 2 w f + f + w + 4 w)
+ X * (2 (w^2 + w) + 2 (d w + w) + 2 w) + w D + D

Published size: 12 layers of 768, FFN 3072, cross-attention in every second layer, M = 32.

Stage 1 (:class:`QFormerStageOne`) trains the queries with paired texts and without the language
model, equal weights: contrastive (queries and text do not see each other), matching (they all see
each other; hard negatives), captioning (text is causal and reads the queries, never the reverse).
Text shares the self-attention and has its own feed-forward layers. Parameters besides those of the
queries' network, with V words, T positions, c the width of the contrastive heads:
(V + T + 1) w + 2 w (marks) + 2 w (norm) + layers * (2 w f + f + w + 2 w) + 2 (w c + c)
+ (w^2 + w) + 2 w + V + 2 w + 2 + 1
Recipe: 10 epochs, lr 1e-4 -> 1e-5 cosine, 5000 steps of warm-up, weight decay 0.05, batch 100 per
device. Stage 2: the text branch is dropped, affine map to D, caption loss through the frozen
language model, batch 64 per device, 2000 steps of warm-up.

Deliberate changes: nothing starts from BERT (there is nothing to download), so the text's
feed-forward layers start as copies of the queries' (in BLIP-2 it is the reverse); two learnt marks
replace BERT's [CLS] and [DEC], so any tokenizer will do; there is no dropout; the captions' loss has
no label smoothing unless asked for. Hard negatives are never of the same item.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

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

NORM_EPS = 1e-12  # BERT's
STAGE_ONE = "modalign.connectors.perceivers.qformer_stage_one"


class QFormerLayer(nn.Module):
    """One layer, callable step by step, so that stage 1 can run queries and text through it jointly.

    Args:
        feature_size: d.
        width: of the queries.
        heads: of every attention.
        ffn: hidden width of the feed-forward.
        mixes: whether the queries read each other.
        reads: whether they read the features.
    """

    def __init__(
        self, feature_size: int, width: int, heads: int, ffn: int, *, mixes: bool, reads: bool
    ) -> None:
        super().__init__()
        self.mixes = mixes
        if mixes:
            self.attention = Attention(width, heads)
            self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = Attention(width, heads, memory_width=feature_size) if reads else None
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPS) if reads else None
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def mix(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Apply self-attention: x (B, S, w), allowed (B, S, S)."""
        return self.attention_norm(x + self.attention(x, x, allowed)) if self.mixes else x

    def read(self, queries: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Apply cross-attention to features (B, N, d), mask (B, N), then the feed-forward."""
        if self.cross is not None and self.cross_norm is not None:
            read = self.cross(queries, features, mask.unsqueeze(1))
            queries = self.cross_norm(queries + read)
        return self.ffn_norm(queries + self.ffn(queries))

    def flops(self, queries: int, num_features: int) -> float:
        """Return the FLOPs of one item with ``queries`` queries and N features."""
        cross = 0.0 if self.cross is None else self.cross.flops(queries, num_features)
        mixing = self.attention.flops(queries, queries) if self.mixes else 0.0
        return mixing + cross + map_flops(queries, self.ffn)


@dataclass(frozen=True)
class QFormerOptions(TokenOptions):
    """Options of ``qformer``.

    Attributes:
        num_tokens: M, the queries.
        width: of the queries.
        layers: of the transformer.
        heads: of every attention.
        ffn: hidden width of the feed-forward.
        cross_every: layers from one cross-attention to the next.
    """

    num_tokens: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    cross_every: int = 2

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 2 layers as wide as the LLM, both reading the features."""
        width = min(widths.hidden_size, 768)
        return cls(quarter_tokens(widths), width, 2, heads_of(width), 4 * width, 1)


class QFormer(FixedLength):
    """Learnt queries with self-attention, cross-attention and a pre-training stage of their own."""

    name = "qformer"
    family = "perceiver"
    group = "Q-Former perceiver"
    parameter_text = "layers * (4w^2 + 2wf) + X * (2w^2 + 2dw) + Mw + wD"
    rate_scale = 0.3
    papers = (
        "BLIP-2 (arXiv 2301.12597)",
        "InstructBLIP (arXiv 2305.06500)",
        "SALMONN (arXiv 2310.13289)",
    )
    stage_one_needs_text = True
    options_type = QFormerOptions
    options: QFormerOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen, width = self.options, self.options.width
        sizes = (widths.feature_size, width, chosen.heads, chosen.ffn)
        self.queries = learnt(chosen.num_tokens, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(*sizes, mixes=True, reads=i % chosen.cross_every == 0)
            for i in range(chosen.layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """Return BLIP-2's three terms, equally weighted."""
        terms = ("image_text_contrastive", "image_text_matching", "image_grounded_captioning")
        return dict.fromkeys(terms, 1.0)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the network in use: queries only."""
        M = self.options.num_tokens
        layers = sum(layer.flops(M, num_features) for layer in typed(self.layers, QFormerLayer))
        return layers + map_flops(M, self.project)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        tokens = self.project(self.read(features, mask))
        return tokens, full_mask(tokens)

    def read(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the queries after the last layer: (B, M, width)."""
        features = zero_masked(features, mask)
        x = self.norm(self.queries).expand(len(features), -1, -1)
        for layer in typed(self.layers, QFormerLayer):
            x = layer.read(layer.mix(x), features, mask)
        return x

    def build_stage_one(self, vocab_size: int, max_positions: int) -> nn.Module:
        """Return the network of stage 1; training it trains this connector's own tensors.

        The module is imported by name, since a saved model carries whatever ``import`` statements name.
        """
        return import_module(STAGE_ONE).QFormerStageOne(self, vocab_size, max_positions)
