"""Window Q-Former: a Q-Former reads each window of neighbouring frames by itself, in order of time.

    features (B, N, d) -> W = ceil(N/k) windows of k -> q queries each (B, W q, width) -> affine -> tokens

Source: SALMONN (arXiv 2310.13289): 2 post-norm layers of 768, cross-attention in each, one query per
window of 17 frames (0.33 s of Whisper's features), so that the number of tokens follows the length.
GraniteSpeech (arXiv 2505.08699) takes 3 queries per 15 frames.

Parameters, with w = width, f = FFN width, q = queries, [.] only where q > 1:
q w + 2 w + 2 d + layers * (2 (w^2 + w) + 2 (d w + w) + 2 w f + f + w + 4 w + [4 (w^2 + w) + 2 w])
+ w D + D

Recipe of SALMONN: LoRA of rank 8 on the language model, Q-Former and affine map trained, encoders
frozen; pre-training on recognition and captioning, then instruction tuning.

Deliberate changes: nothing starts from BERT; with one query there is no self-attention, since
attention over a single key cannot learn what to attend to (SALMONN computes it); no dropout. A last
window that is not full is read as far as it goes and gives its q tokens. On a grid neighbours are
those in reading order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import (
    ConnectorError,
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    affine_parameters,
    linear_flops,
)
from modalign.connectors.layers import Attention, FeedForward, heads_of, learnt, windows

NORM_EPS = 1e-12  # BERT's


class WindowLayer(nn.Module):
    """Queries mix (where there are several), read their window, think; a norm after each step."""

    def __init__(self, feature_size: int, width: int, heads: int, ffn: int, mixes: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads) if mixes else None
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS) if mixes else None
        self.cross = Attention(width, heads, memory_width=feature_size)
        self.cross_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.ffn = FeedForward(width, ffn)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, frames: Tensor, present: Tensor) -> Tensor:
        """Queries (B, q, width), frames (B, k, d), present (B, k) -> queries."""
        if self.attention is not None and self.attention_norm is not None:
            x = self.attention_norm(x + self.attention(x, x))
        x = self.cross_norm(x + self.cross(x, frames, present.unsqueeze(1)))
        return self.ffn_norm(x + self.ffn(x))


def _parameters(
    widths: Widths,
    *,
    window: int = 17,
    queries: int = 1,
    width: int = 768,
    layers: int = 2,
    heads: int = 12,
    ffn: int = 3072,
) -> int:
    d = widths.feature_size
    layer = (
        Attention.parameters_for(width, width, d)
        + FeedForward.parameters_for(width, ffn)
        + 4 * width
    )
    if queries > 1:
        layer += Attention.parameters_for(width, width) + 2 * width
    out = affine_parameters(width, widths.hidden_size)
    return queries * width + 2 * width + 2 * d + layers * layer + out


class WindowQFormer(PrefixConnector):
    """Learnt queries read window by window; shared by all windows.

    Args:
        widths: the neighbours; no grid is needed.
        window: k, frames per window.
        queries: q, tokens per window.
        width: of the queries.
        layers: each with cross-attention.
        heads: of every attention.
        ffn: hidden width of the feed-forward.

    Raises:
        ConnectorError: a window or a number of queries below 1.
    """

    name = "window_qformer"
    family = "perceiver"
    group = "Q-Former perceiver"
    token_formula = "qN/k"
    parameter_text = "layers * (2w^2 + 2dw + 2wf [+ 4w^2]) + qw + wD"
    rate_scale = 0.3
    papers = ("SALMONN (arXiv 2310.13289)", "GraniteSpeech (arXiv 2505.08699)")

    def __init__(
        self,
        widths: Widths,
        *,
        window: int = 17,
        queries: int = 1,
        width: int = 768,
        layers: int = 2,
        heads: int = 12,
        ffn: int = 3072,
    ) -> None:
        super().__init__(widths)
        if min(window, queries) < 1:
            raise ConnectorError(
                f"connector {self.name!r} needs window >= 1 and queries >= 1, "
                f"not {window} and {queries}"
            )
        self.shape = (window, queries, width, layers, ffn)
        self.enter = nn.LayerNorm(widths.feature_size)
        self.queries = learnt(queries, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            WindowLayer(widths.feature_size, width, heads, ffn, mixes=queries > 1)
            for _ in range(layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Published: SALMONN's. Matched: as wide as the LLM, one query per 4 frames (M = N/4)."""
        published = variant == "published"
        width = 768 if published else min(widths.hidden_size, 768)
        return {
            "window": 17 if published else 4,
            "queries": 1,
            "width": width,
            "layers": 2,
            "heads": heads_of(width),
            "ffn": 4 * width,
        }

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """The sum of the module docstring."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """``q ceil(N/k)``: a last window that is not full gives its tokens too."""
        window, queries, *_ = self.shape
        return queries * -(-num_features // window)

    def flops(self, num_features: int) -> float:
        """Every window is computed whole, the last one with its padding."""
        window, queries, width, layers, ffn = self.shape
        d, tokens = self.widths.feature_size, self.num_tokens(num_features)
        layer = Attention.flops_for(queries, window, width, width, d)
        layer += FeedForward.flops_for(queries, width, ffn)
        if queries > 1:
            layer += Attention.flops_for(queries, queries, width, width)
        out = linear_flops(tokens, width, self.widths.hidden_size)
        return tokens // queries * layers * layer + out

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, d), (B, N) -> (B, W q, D), (B, W q); the grid does not matter."""
        window, queries, *_ = self.shape
        frames, present = windows(features, mask, window)
        B, W = present.shape[:2]
        frames, inside = self.enter(frames.flatten(0, 1)), present.flatten(0, 1)
        x = self.norm(self.queries).expand(B * W, -1, -1)
        for layer in self.layers:
            x = layer(x, frames, inside)
        tokens = self.project(x).unflatten(0, (B, W)).flatten(1, 2)
        return tokens, present.any(dim=-1).repeat_interleave(queries, dim=1)
