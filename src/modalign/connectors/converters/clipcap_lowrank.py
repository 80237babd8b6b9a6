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

from typing import Any

from torch import Tensor, nn

from modalign.connectors.base import Grid, PrefixConnector, Variant, Widths, linear_flops
from modalign.connectors.converters.clipcap import PUBLISHED_TOKENS, masked_mean
from modalign.connectors.converters.layers import affine_stack_parameters, require_positive

DEFAULT_RANK = 64


class ClipCapLowRankConnector(PrefixConnector):
    """Mean of the features, rank-r affine, tanh, rank-r affine to ``num_tokens`` embeddings.

    Args:
        widths: the neighbours.
        num_tokens: P, prefix embeddings per item.
        rank: r, of both matrices.
    """

    name = "clipcap_lowrank"
    family = "converter"
    group = "prefix from a global vector"
    token_formula = "P"
    parameter_text = "r(d + 2H + PD) + H + PD, H = PD/2"
    papers = ("after ClipCap (arXiv 2111.09734)",)

    def __init__(
        self, widths: Widths, num_tokens: int = PUBLISHED_TOKENS, rank: int = DEFAULT_RANK
    ) -> None:
        super().__init__(widths)
        require_positive(self.name, num_tokens=num_tokens, rank=rank)
        self.prefix_length, self.rank = num_tokens, rank
        hidden, outputs = _sizes(widths, num_tokens)
        self.layers = nn.Sequential(
            LowRankAffine(widths.feature_size, hidden, rank),
            nn.Tanh(),
            LowRankAffine(hidden, outputs, rank),
        )

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """P = 10 in both; rank 64, or when matched the rank that costs what ``mlp`` costs."""
        rank = DEFAULT_RANK if variant == "published" else _matched_rank(widths)
        return {"num_tokens": PUBLISHED_TOKENS, "rank": min(rank, widths.feature_size)}

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """``r(d + 2H + PD) + H + PD`` with ``H = PD/2``."""
        return _parameters(widths, **options)

    def num_tokens(self, num_features: int) -> int:
        """P, whatever N."""
        return self.prefix_length

    def flops(self, num_features: int) -> float:
        """``2r(d + 2H + PD)``, whatever N; the mean's additions are not counted."""
        hidden, outputs = _sizes(self.widths, self.prefix_length)
        return linear_flops(1, self.rank, self.widths.feature_size + 2 * hidden + outputs)

    def forward(
        self, features: Tensor, mask: Tensor, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, N, d) -> tokens (B, P, D); an item without features is masked out."""
        prefix = self.layers(masked_mean(features, mask))
        tokens = prefix.reshape(-1, self.prefix_length, self.widths.hidden_size)
        return tokens, mask.any(dim=1, keepdim=True).expand(-1, self.prefix_length)


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


def _sizes(widths: Widths, num_tokens: int) -> tuple[int, int]:
    """H and PD."""
    outputs = num_tokens * widths.hidden_size
    return outputs // 2, outputs


def _parameters(
    widths: Widths, num_tokens: int = PUBLISHED_TOKENS, rank: int = DEFAULT_RANK
) -> int:
    hidden, outputs = _sizes(widths, num_tokens)
    return rank * (widths.feature_size + 2 * hidden + outputs) + hidden + outputs


def _matched_rank(widths: Widths) -> int:
    mlp = affine_stack_parameters(widths.feature_size, widths.hidden_size, 2)
    biases = _parameters(widths, rank=0)
    return max(1, round((mlp - biases) / (_parameters(widths, rank=1) - biases)))
