"""``clipcap_lowrank``: ClipCap with two matrices of rank r: its size is linear in PD.

Shapes: features (B, N, d) -> their mean (B, d) -> tokens (B, P, D).
Source: ours, after ClipCap (arXiv 2111.09734) and low-rank factors as in LoRA (arXiv 2106.09685);
it tests whether ClipCap's parameters buy anything.
Parameters: r(d + H) + H + r(H + PD) + PD with H = PD/2.
Recipe: none published; start from ClipCap's (AdamW, lr 2e-5) and tune.
"published" is ClipCap's P = 10 at rank 64 (there is no paper to follow); "matched" takes the rank
at which the connector is as large as the two-layer ``mlp`` for the same d and D.
Initialisation: the product of the factors has the variance of torch's default for the full matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from modalign.connectors.base import Widths
from modalign.connectors.converters.clipcap import ClipCapConnector, ClipCapOptions
from modalign.connectors.converters.shared import require_positive


@dataclass(frozen=True)
class ClipCapLowRankOptions(ClipCapOptions):
    """Options of ``clipcap_lowrank``.

    Attributes:
        rank: r, of both matrices.
    """

    rank: int = 64

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return rank 64, or d if that is smaller."""
        return cls(rank=min(64, widths.feature_size))

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return the rank that costs as much as ``mlp``, at most d."""
        d, D = widths.feature_size, widths.hidden_size
        hidden, outputs = cls().num_tokens * D // 2, cls().num_tokens * D
        mlp = d * D + D + D * D + D
        rank = round((mlp - hidden - outputs) / (d + 2 * hidden + outputs))
        return cls(rank=min(max(1, rank), d))


class ClipCapLowRankConnector(ClipCapConnector):
    """Mean of the features, rank-r affine, tanh, rank-r affine to ``num_tokens`` embeddings."""

    name = "clipcap_lowrank"
    parameter_text = "r(d + 2H + PD) + H + PD, H = PD/2"
    papers = ("after ClipCap (arXiv 2111.09734)",)
    options_type = ClipCapLowRankOptions
    options: ClipCapLowRankOptions

    def _affine(self, inputs: int, outputs: int) -> nn.Module:
        require_positive(self.name, rank=self.options.rank)
        return LowRankAffine(inputs, outputs, self.options.rank)


class LowRankAffine(nn.Module):
    """Affine map whose matrix is a product of rank ``rank``: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)
        # ``down`` has the full matrix's default variance; ``up`` preserves it through the sum over r.
        nn.init.normal_(self.up.weight, std=rank**-0.5)
        nn.init.uniform_(self.up.bias, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.up(self.down(x))
