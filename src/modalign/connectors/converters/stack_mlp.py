"""``stack_mlp``: k neighbouring frames joined on channel, then an MLP, the connector of Voxtral.

Shapes: features (B, N, d) -> (B, M, k d) -> tokens (B, M, D), M = ceil(N/k), in order of time.
Sources: Voxtral (arXiv 2507.13264), k = 4, without biases; frame stacking before an affine map or an
MLP is also that of SLAM-ASR (arXiv 2402.08846, k = 5) and of Ultravox (k = 8).
Parameters: k dD + D^2.
Recipe of the paper: pre-training on interleaved speech and text, at first with encoder and LLM
frozen; then instruction tuning.
Deliberately changed: a last window that is not full is filled with zeros and gives a token (Voxtral
pads every clip to 30 s, so that none is partial). On a grid neighbours are those in reading order.
Initialisation: torch default.
With k = 4 behind a Whisper encoder in the form ``voxtral`` it exports to transformers' Voxtral.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import (
    Grid,
    PrefixConnector,
    Variant,
    Widths,
    affine_parameters,
    linear_flops,
)
from modalign.connectors.converters.layers import require_positive
from modalign.connectors.layers import windows


class StackMlpConnector(PrefixConnector):
    """``k d -> D``, GELU, ``D -> D`` without biases on stacked frames (Voxtral, arXiv 2507.13264).

    Args:
        widths: the neighbours; no grid is needed.
        stack: k, frames joined into one token.
    """

    name = "stack_mlp"
    family = "converter"
    group = "direct mapping, compressed"
    token_formula = "N/k"
    parameter_text = "k dD + D^2"
    papers = ("Voxtral (arXiv 2507.13264)", "SLAM-ASR (arXiv 2402.08846)")

    def __init__(self, widths: Widths, stack: int = 4) -> None:
        super().__init__(widths)
        require_positive(self.name, stack=stack)
        self.stack = stack
        D = widths.hidden_size
        self.layers = nn.Sequential(
            nn.Linear(stack * widths.feature_size, D, bias=False),
            nn.GELU(),
            nn.Linear(D, D, bias=False),
        )

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Four frames per token in both variants: Voxtral's number is also the N/4 of its fellows."""
        return {"stack": 4}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``k dD + D^2``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """``ceil(N/k)``: a last window that is not full gives a token too."""
        return -(-num_features // self.stack)

    def flops(self, num_features: int) -> float:
        """``2M(k dD + D^2)``."""
        d, D, M = self.widths.feature_size, self.widths.hidden_size, self.num_tokens(num_features)
        return linear_flops(M, self.stack * d, D) + linear_flops(M, D, D)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d), mask (B, N) -> tokens (B, M, D), mask (B, M); the grid does not matter."""
        frames, present = windows(features, mask, self.stack)
        return self.layers(frames.flatten(2)), present.any(dim=-1)


def _parameters(widths: Widths, stack: int = 4) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return affine_parameters(stack * d, D, bias=False) + affine_parameters(D, D, bias=False)
