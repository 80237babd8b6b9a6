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
Text shares the self-attention and has feed-forward layers of its own. Parameters beside the
queries' network, V words, T positions, c the width of the contrastive heads:
(V + T + 1) w + 2 w (marks) + 2 w (norm) + layers * (2 w f + f + w + 2 w) + 2 (w c + c)
+ (w^2 + w) + 2 w + V + 2 w + 2 + 1
Recipe: 10 epochs, lr 1e-4 -> 1e-5 cosine, 5000 steps of warm-up, weight decay 0.05, batch 100 per
device. Stage 2: the text branch is dropped, affine map to D, caption loss through the frozen
language model, batch 64 per device, 2000 steps of warm-up.

Deliberate changes: nothing starts from BERT (there is nothing to download), so the text's
feed-forward layers start as copies of the queries' (there the reverse); two learnt marks take the
places of BERT's [CLS] and [DEC], so any tokenizer will do; no dropout; the captions' loss without
label smoothing unless asked for. Hard negatives are never of the same item.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

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

NORM_EPS = 1e-12  # BERT's
STAGE_ONE = "modalign.connectors.perceivers.qformer_stage_one"


class QFormerLayer(nn.Module):
    """One layer in its three steps, so that stage 1 can run queries and text through it jointly."""

    def __init__(self, feature_size: int, width: int, heads: int, ffn: int, reads: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = Attention(width, heads, memory_width=feature_size) if reads else None
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPS) if reads else None
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def mix(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Self-attention: x (B, S, w), allowed (B, S, S)."""
        return self.attention_norm(x + self.attention(x, x, allowed))

    def read(self, queries: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Cross-attention to features (B, N, d), mask (B, N), then the feed-forward."""
        if self.cross is not None and self.cross_norm is not None:
            read = self.cross(queries, features, mask.unsqueeze(1))
            queries = self.cross_norm(queries + read)
        return self.ffn_norm(queries + self.ffn(queries))


def typed_layers(layers: nn.ModuleList) -> list[QFormerLayer]:
    """The same layers, known for what they are."""
    return cast("list[QFormerLayer]", list(layers))


def _parameters(
    widths: Widths,
    *,
    num_tokens: int = 32,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    ffn: int = 3072,
    cross_every: int = 2,
) -> int:
    layer = (
        Attention.parameters_for(width, width) + FeedForward.parameters_for(width, ffn) + 4 * width
    )
    cross = Attention.parameters_for(width, width, widths.feature_size) + 2 * width
    readers = -(-layers // cross_every)
    out = affine_parameters(width, widths.hidden_size)
    return (num_tokens + 2) * width + layers * layer + readers * cross + out


class QFormer(PrefixConnector):
    """Learnt queries with self-attention, cross-attention and an own pre-training."""

    name = "qformer"
    family = "perceiver"
    group = "Q-Former perceiver"
    token_formula = "M"
    parameter_text = "layers * (4w^2 + 2wf) + X * (2w^2 + 2dw) + Mw + wD"
    rate_scale = 0.3
    papers = (
        "BLIP-2 (arXiv 2301.12597)",
        "InstructBLIP (arXiv 2305.06500)",
        "SALMONN (arXiv 2310.13289)",
    )
    stage_one_needs_text = True

    def __init__(
        self,
        widths: Widths,
        *,
        num_tokens: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn: int = 3072,
        cross_every: int = 2,
    ) -> None:
        super().__init__(widths)
        self.shape = (num_tokens, width, layers, heads, ffn, cross_every)
        self.queries = learnt(num_tokens, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(widths.feature_size, width, heads, ffn, reads=i % cross_every == 0)
            for i in range(layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: BLIP-2's. Matched: 2 layers as wide as the LLM, both reading the features."""
        if variant == "published":
            return {
                "num_tokens": 32,
                "width": 768,
                "layers": 12,
                "heads": 12,
                "ffn": 3072,
                "cross_every": 2,
            }
        width = min(widths.hidden_size, 768)
        return {
            "num_tokens": quarter_tokens(widths),
            "width": width,
            "layers": 2,
            "heads": heads_of(width),
            "ffn": 4 * width,
            "cross_every": 1,
        }

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """BLIP-2's three, equally weighted."""
        terms = ("image_text_contrastive", "image_text_matching", "image_grounded_captioning")
        return dict.fromkeys(terms, 1.0)

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """The first sum of the module docstring."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """M, whatever N is."""
        return self.shape[0]

    def flops(self, num_features: int) -> float:
        """The network in use: queries only."""
        M, width, layers, _, ffn, cross_every = self.shape
        layer = Attention.flops_for(M, M, width, width) + FeedForward.flops_for(M, width, ffn)
        cross = Attention.flops_for(M, num_features, width, width, self.widths.feature_size)
        readers = -(-layers // cross_every)
        out = linear_flops(M, width, self.widths.hidden_size)
        return layers * layer + readers * cross + out

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, M, D), (B, M); the grid does not matter."""
        tokens = self.project(self.read(features, mask))
        return tokens, full_mask(tokens)

    def read(self, features: Tensor, mask: Tensor) -> Tensor:
        """The queries after the last layer: (B, M, width)."""
        features = zero_masked(features, mask)
        x = self.norm(self.queries).expand(len(features), -1, -1)
        for layer in typed_layers(self.layers):
            x = layer.read(layer.mix(x), features, mask)
        return x

    def build_stage_one(self, vocab_size: int, max_positions: int) -> nn.Module:
        """Return the network of stage 1; training it trains this connector's own tensors.

        Imported by name: what an ``import`` statement names would travel with a saved model.
        """
        return import_module(STAGE_ONE).QFormerStageOne(self, vocab_size, max_positions)
