"""Window Q-Former: a Q-Former reads each window of neighbouring frames separately, in order of time.

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
attention over a single key cannot learn what to attend to (SALMONN computes it); no dropout. A partial
last window is read as far as it goes and gives its q tokens. On a grid, neighbours are those in
reading order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from modalign.connectors.base import (
    ConnectorError,
    Grid,
    Masked,
    Options,
    PrefixConnector,
    Widths,
    map_flops,
)
from modalign.connectors.layers import heads_of, learnt, typed, windows
from modalign.connectors.perceivers.qformer import NORM_EPS, QFormerLayer


@dataclass(frozen=True)
class WindowQFormerOptions(Options):
    """Options of ``window_qformer``.

    Attributes:
        window: k, frames per window.
        queries: q, tokens per window.
        width: of the queries.
        layers: each with cross-attention.
        heads: of every attention.
        ffn: hidden width of the feed-forward.
    """

    window: int = 17
    queries: int = 1
    width: int = 768
    layers: int = 2
    heads: int = 12
    ffn: int = 3072

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return layers as wide as the LLM, with one query per 4 frames (M = N/4)."""
        width = min(widths.hidden_size, 768)
        return cls(4, 1, width, 2, heads_of(width), 4 * width)


class WindowQFormer(PrefixConnector):
    """Learnt queries, shared by all windows, read window by window.

    Raises:
        ConnectorError: the window or the number of queries is below 1.
    """

    name = "window_qformer"
    family = "perceiver"
    group = "Q-Former perceiver"
    token_formula = "qN/k"
    parameter_text = "layers * (2w^2 + 2dw + 2wf [+ 4w^2]) + qw + wD"
    rate_scale = 0.3
    papers = ("SALMONN (arXiv 2310.13289)", "GraniteSpeech (arXiv 2505.08699)")
    options_type = WindowQFormerOptions
    options: WindowQFormerOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        chosen = self.options
        window, queries, width = chosen.window, chosen.queries, chosen.width
        if min(window, queries) < 1:
            raise ConnectorError(
                f"connector {self.name!r} needs window >= 1 and queries >= 1, "
                f"not {window} and {queries}"
            )
        self.enter = nn.LayerNorm(widths.feature_size)
        sizes = (widths.feature_size, width, chosen.heads, chosen.ffn)
        self.queries = learnt(queries, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(*sizes, mixes=queries > 1, reads=True) for _ in range(chosen.layers)
        )
        self.project = nn.Linear(width, widths.hidden_size)

    def num_tokens(self, num_features: int) -> int:
        """Return ``q ceil(N/k)``: a partial last window also gives its tokens."""
        return self.options.queries * -(-num_features // self.options.window)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of whole windows, the last one with its padding."""
        window, queries = self.options.window, self.options.queries
        layers = typed(self.layers, QFormerLayer)
        tokens = self.num_tokens(num_features)
        read = tokens // queries * sum(layer.flops(queries, window) for layer in layers)
        return read + map_flops(tokens, self.project)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """(B, N, d), (B, N) -> (B, W q, D), (B, W q); the grid does not matter."""
        window, queries = self.options.window, self.options.queries
        frames, present = windows(features, mask, window)
        B, W = present.shape[:2]
        frames, inside = self.enter(frames.flatten(0, 1)), present.flatten(0, 1)
        x = self.norm(self.queries).expand(B * W, -1, -1)
        for layer in typed(self.layers, QFormerLayer):
            x = layer.read(layer.mix(x), frames, inside)
        tokens = self.project(x).unflatten(0, (B, W)).flatten(1, 2)
        return tokens, present.any(dim=-1).repeat_interleave(queries, dim=1)
