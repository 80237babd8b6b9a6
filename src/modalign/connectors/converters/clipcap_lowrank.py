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
from typing import Any, Self

from torch import Tensor, nn

from modalign.connectors.base import Grid, Options, PrefixConnector, Widths, map_flops
from modalign.connectors.converters.clipcap import masked_mean
from modalign.connectors.converters.layers import require_positive


@dataclass(frozen=True)
class ClipCapLowRankOptions(Options):
    """Options of ``clipcap_lowrank``.

    Attributes:
        num_tokens: P, prefix embeddings per item.
        rank: r, of both matrices.
    """

    num_tokens: int = 10
    rank: int = 64

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Rank 64, or d where that is smaller."""
        return cls(rank=min(64, widths.feature_size))

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """The rank that costs what ``mlp`` costs, d at most."""
        d, D = widths.feature_size, widths.hidden_size
        hidden, outputs = cls().num_tokens * D // 2, cls().num_tokens * D
        mlp = d * D + D + D * D + D
        rank = round((mlp - hidden - outputs) / (d + 2 * hidden + outputs))
        return cls(rank=min(max(1, rank), d))


class ClipCapLowRankConnector(PrefixConnector):
    """Mean of the features, rank-r affine, tanh, rank-r affine to ``num_tokens`` embeddings."""

    name = "clipcap_lowrank"
    family = "converter"
    group = "prefix from a global vector"
    token_formula = "P"
    parameter_text = "r(d + 2H + PD) + H + PD, H = PD/2"
    papers = ("after ClipCap (arXiv 2111.09734)",)
    options_type = ClipCapLowRankOptions
    options: ClipCapLowRankOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        P, rank = self.options.num_tokens, self.options.rank
        require_positive(self.name, num_tokens=P, rank=rank)
        outputs = P * widths.hidden_size
        hidden = outputs // 2
        self.layers = nn.Sequential(
            LowRankAffine(widths.feature_size, hidden, rank),
            nn.Tanh(),
            LowRankAffine(hidden, outputs, rank),
        )

    def num_tokens(self, num_features: int) -> int:
        """P, whatever N."""
        return self.options.num_tokens

    def flops(self, num_features: int) -> float:
        """``2r(d + 2H + PD)``, whatever N; the mean's additions are not counted."""
        return map_flops(1, self.layers)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) -> tokens (B, P, D); an item without features is masked out."""
        P = self.options.num_tokens
        tokens = self.layers(masked_mean(features, mask)).unflatten(-1, (P, -1))
        return tokens, mask.any(dim=1, keepdim=True).expand(-1, P)


class LowRankAffine(nn.Module):
    """Affine map whose matrix is a product of rank ``rank``: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)
        # ``down`` has the full matrix's default variance; ``up`` keeps it through the sum over r.
        nn.init.normal_(self.up.weight, std=rank**-0.5)
        nn.init.uniform_(self.up.bias, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.up(self.down(x))
