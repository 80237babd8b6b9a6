"""``stack_mlp``: k neighbouring frames joined on channel, then an MLP; the connector of Voxtral.

Shapes: features (B, N, d) -> (B, M, k d) -> tokens (B, M, D), M = ceil(N/k), in order of time.
Sources: Voxtral (arXiv 2507.13264), k = 4, without biases. SLAM-ASR (arXiv 2402.08846, k = 5) and
Ultravox (k = 8) also stack frames before an affine map or an MLP.
Parameters: k dD + D^2.
Recipe of the paper: pre-training on interleaved speech and text, at first with encoder and LLM
frozen; then instruction tuning.
Deliberately changed: a partial last window is filled with zeros and gives a token (Voxtral pads every
clip to 30 s, so that none is partial). On a grid, neighbours are those in reading order.
Initialisation: torch default.
With k = 4, after a Whisper encoder in the form ``voxtral``, it exports to transformers' Voxtral.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Grid, Masked, Options, PrefixConnector, Widths, map_flops
from modalign.connectors.converters.shared import require_positive
from modalign.connectors.layers import windows


@dataclass(frozen=True)
class StackMlpOptions(Options):
    """Options of ``stack_mlp``; Voxtral's four frames per token give the N/4 of other matched connectors too.

    Attributes:
        stack: k, frames joined into one token.
    """

    stack: int = 4


class StackMlpConnector(PrefixConnector):
    """``k d -> D``, GELU, ``D -> D`` without biases on stacked frames (Voxtral, arXiv 2507.13264)."""

    name = "stack_mlp"
    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "N/k"
    parameter_text = "k dD + D^2"
    papers = ("Voxtral (arXiv 2507.13264)", "SLAM-ASR (arXiv 2402.08846)")
    options_type = StackMlpOptions
    options: StackMlpOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        stack = self.options.stack
        require_positive(self.name, stack=stack)
        D = widths.hidden_size
        self.layers = nn.Sequential(
            nn.Linear(stack * widths.feature_size, D, bias=False),
            nn.GELU(),
            nn.Linear(D, D, bias=False),
        )

    def num_tokens(self, num_features: int) -> int:
        """Return ``ceil(N/k)``: a partial last window also gives a token."""
        return -(-num_features // self.options.stack)

    def flops(self, num_features: int) -> float:
        """Return ``2M(k dD + D^2)``."""
        return map_flops(self.num_tokens(num_features), self.layers)

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Features (B, N, d), mask (B, N) -> tokens (B, M, D), mask (B, M); the grid does not matter."""
        frames, present = windows(features, mask, self.options.stack)
        return self.layers(frames.flatten(2)), present.any(dim=-1)
