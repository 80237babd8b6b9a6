"""``fused_mlp``: three affine maps, the first of them wide, made for two towers joined on channel.

Shapes: features (B, N, d) -> tokens (B, N, D).
Source: Prismatic VLMs (arXiv 2402.07865), its "fused-gelu-mlp".
Parameters: dI + I + ID + D + D^2 + D, where the inner width I is 4d in the paper.
Recipe of the paper: one stage, connector and LLM together (batch 128, lr 2e-5,
cosine, warm-up 3 %).
Deliberately changed: the paper's inner width grows with the encoder; the matched variant sets it to
D instead. The connector takes d as it is, from one tower or from several joined ones.
Initialisation: torch default, as published (seed it before building for equal starts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from modalign.connectors.base import Options, Widths
from modalign.connectors.converters.shared import FeatureMap, require_positive


@dataclass(frozen=True)
class FusedMlpOptions(Options):
    """Options of ``fused_mlp``.

    Attributes:
        inner_size: I; None means 4d, as published.
    """

    inner_size: int | None = None

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return I = 4d."""
        return cls(4 * widths.feature_size)

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return I = D."""
        return cls(widths.hidden_size)


class FusedMlpConnector(FeatureMap):
    """``d -> I``, GELU, ``I -> D``, GELU, ``D -> D`` (Prismatic, arXiv 2402.07865)."""

    name = "fused_mlp"
    parameter_text = "dI + I + ID + D + D^2 + D, I = 4d"
    papers = ("Prismatic VLMs (arXiv 2402.07865)",)
    options_type = FusedMlpOptions
    options: FusedMlpOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        d, D, inner = widths.feature_size, widths.hidden_size, self.options.inner_size
        inner = 4 * d if inner is None else inner
        require_positive(self.name, inner_size=inner)
        self.layers = nn.Sequential(
            nn.Linear(d, inner), nn.GELU(), nn.Linear(inner, D), nn.GELU(), nn.Linear(D, D)
        )
