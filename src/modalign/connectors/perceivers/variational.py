"""Variational perceiver: each token is drawn from a normal distribution computed from the features.

    features (B, N, d) -> resampler core -> mean and log-variance (B, M, c)
    -> a draw in training, the mean afterwards (B, M, c) -> affine -> tokens (B, M, D)

Sources: VAE (arXiv 1312.6114) with beta-VAE's weight on the divergence; 3DShape2VecSet (arXiv
2301.11445) for a query perceiver's latents as means and variances; the variational information
bottleneck (arXiv 1612.00410) for the same divergence alongside an answer's loss; free bits (arXiv
1606.04934).

Stage one rebuilds the features from the draw (the evidence lower bound with a normal likelihood). The
divergence from the standard normal stays, with the same weight ``beta``, in the stage through the
language model. ``kl_latent`` is in nats per token and ``reconstruction`` in squared error per
value of the layer-normed features, so the bound of a unit-variance likelihood is
beta = 2 M / (N d): 0.008 on the starter, 0.0005 with CLIP-L/14 at 336 pixels and M = 144.

Parameters, with w = width, f = FFN width:
M w + layers * (2 (w^2 + d w) + 3 w + w + 2 w f + f + w + 4 w + 2 d) + 2 w + (2 w c + 2 c)
+ (c D + D)

Published size: no connector of this kind has become standard for language models, so it is Honeybee's
resampler (M = 64, 6 layers of 1024) with 3DShape2VecSet's c = 32.

Deliberate changes: log-variances start near -4, so that the first draws are close to their means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import Grid, Options, Widths, full_mask, map_flops, quarter_tokens
from modalign.connectors.codes import Code, CodeConnector, CodeEncoder, GaussianCode
from modalign.connectors.layers import heads_of
from modalign.connectors.perceivers.resampler import ResamplerCore, ResamplerOptions

FIRST_LOG_VARIANCE = -4.0
LOG_VARIANCES = (-10.0, 10.0)  # clamped, as exp() is useless beyond
ACTIVE = 0.01  # least variance over media of an active unit's mean (Burda et al., arXiv 1509.00519)


@dataclass(frozen=True)
class VariationalOptions(Options):
    """Options of ``variational``.

    Attributes:
        num_tokens: M.
        width: of the resampler core.
        layers: of the core.
        heads: of the core.
        ffn: of the core.
        code_width: c.
        beta: weight of ``kl_latent`` in both stages.
        free_bits: nats per value that the divergence does not penalise.
    """

    num_tokens: int = 64
    width: int = 1024
    layers: int = 6
    heads: int = 16
    ffn: int = 4096
    code_width: int = 32
    beta: float = 1e-3
    free_bits: float = 0.0

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return 2 layers as wide as the LLM."""
        width = min(widths.hidden_size, 1024)
        heads = heads_of(width)
        return cls(quarter_tokens(widths), width, 2, heads, 4 * width, min(32, width))


class GaussianEncoder(CodeEncoder):
    """Features -> a normal distribution over c values for each of M latent queries.

    Args:
        feature_size: d.
        options: of the connector.
    """

    def __init__(self, feature_size: int, options: VariationalOptions) -> None:
        super().__init__()
        self.feature_size, self.options = feature_size, options
        core = ResamplerOptions(
            options.num_tokens,
            options.width,
            options.layers,
            options.heads,
            options.width // options.heads,
            options.ffn,
        )
        self.core = ResamplerCore(feature_size, core)
        self.out = nn.Linear(options.width, 2 * options.code_width)
        with torch.no_grad():
            self.out.bias[options.code_width :] = FIRST_LOG_VARIANCE

    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> GaussianCode:
        """Encode features (B, N, d), mask (B, N); values are drawn in training, and else the means."""
        found = self.out(self.core(features, mask))
        mean, log_variance = found.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(*LOG_VARIANCES)
        values = mean
        if self.training:
            values = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return GaussianCode(values, full_mask(mean), mean, log_variance, self.options.free_bits)

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the core and the map to means and variances."""
        out = map_flops(self.options.num_tokens, self.out)
        return self.core.flops(num_features) + out


class Variational(CodeConnector):
    """Tokens are drawn from the distributions that latent queries read from the signal."""

    name = "variational"
    family = "perceiver"
    group = "VAE-style / discrete codes"
    token_formula = "M"
    parameter_text = "resampler core + 2wc + cD"
    papers = (
        "VAE (arXiv 1312.6114)",
        "3DShape2VecSet (arXiv 2301.11445)",
        "VIB (arXiv 1612.00410)",
    )
    rate_scale = 0.3
    options_type = VariationalOptions
    options: VariationalOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self.code_width = self.options.code_width
        self.encoder: GaussianEncoder = GaussianEncoder(widths.feature_size, self.options)
        self.project = nn.Linear(self.code_width, widths.hidden_size)

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """Return the terms of the evidence lower bound."""
        return {"reconstruction": 1.0, **cls.model_terms(**options)}

    @classmethod
    def model_terms(cls, **options: Any) -> dict[str, float]:
        """Return the divergence, which stays while the language model reads the draws."""
        return {"kl_latent": float(cls.options_type.of(cls.name, options).beta)}

    def num_tokens(self, num_features: int) -> int:
        """Return M, whatever N is."""
        return self.options.num_tokens

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the encoder and the map to D."""
        return self.encoder.flops(num_features) + map_flops(self.options.num_tokens, self.project)

    def embed(self, code: Code) -> Tensor:
        """Map values (B, M, c) to embeddings (B, M, D)."""
        return self.project(code.values.to(self.project.weight.dtype))

    @torch.no_grad()
    def diagnose(self, media: Iterable[tuple[Tensor, Tensor, Grid | None]]) -> dict[str, float]:
        """Measure the code's nats per token, and the share of units whose mean varies over media."""
        found = [self.encoder(*batch) for batch in media]
        means = torch.cat([code.mean for code in found]).double()
        variances = torch.cat([code.log_variance for code in found]).double().exp()
        nats = 0.5 * (means.square() + variances - variances.log() - 1)
        spread = means.var(dim=0, correction=0)
        return {
            "nats per token": float(nats.sum(-1).mean()),
            "active units": float((spread > ACTIVE).double().mean()),
            "media counted": float(len(means)),
        }
