"""Terms of connectors with a code (VQ-VAE, arXiv 1711.00937; VAE, arXiv 1312.6114): means over media.

They read ``outputs.codes``: those of stage one's auto-encoder, or of every connector of the model that
has one, for the media of this batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modalign.connectors.codes import DiscreteCode, GaussianCode
from modalign.training.objectives import objective_term


def _per_place(values: Tensor, mask: Tensor) -> Tensor:
    """Return (B,), the mean of (B, M) values over unmasked places."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def rebuilding_error(rebuilt: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return (B,), the mean squared error per value over unmasked features: (B, N, d) twice, (B, N)."""
    return _per_place((rebuilt.float() - target.float()).square().mean(-1), mask)


def code_distance(inputs: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
    """(B,) squared distance per place: (B, M, c) twice, (B, M)."""
    return _per_place((inputs - vectors).square().sum(-1), mask)


def latent_nats(mean: Tensor, log_variance: Tensor, mask: Tensor, free_bits: float = 0.0) -> Tensor:
    """(B,) nats per place of normal distributions (B, M, c) from the standard normal.

    Args:
        mean: (B, M, c).
        log_variance: (B, M, c).
        mask: (B, M) bool.
        free_bits: minimum nats counted per value.
    """
    nats = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)
    return _per_place(nats.clamp(min=free_bits).sum(-1), mask)


def _over_media(values: list[Tensor], outputs: Any, batch: Any) -> Tensor:
    """Return the mean of (B,) values over the media of the whole batch; zero without media."""
    if not values:
        return outputs.logits.new_zeros((), dtype=torch.float32)
    return torch.cat(values).sum() / batch.num_media


@objective_term("reconstruction", needs={"stage_one"})
def reconstruction(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Reconstruction error of features from the code, in stage one of connectors with a code."""
    values = rebuilding_error(outputs.rebuilt, outputs.target, outputs.mask)
    return _over_media([values], outputs, batch)


@objective_term("codebook", needs={"codes"})
def codebook(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Move chosen codebook vectors to their inputs (VQ-VAE, arXiv 1711.00937)."""
    codes = [code for code in outputs.codes if isinstance(code, DiscreteCode)]
    values = [code_distance(code.inputs.detach(), code.vectors, code.mask) for code in codes]
    return _over_media(values, outputs, batch)


@objective_term("commitment", needs={"codes"})
def commitment(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Move the encoder's outputs to the chosen vectors; the paper's weight is 0.25."""
    codes = [code for code in outputs.codes if isinstance(code, DiscreteCode)]
    values = [code_distance(code.inputs, code.vectors.detach(), code.mask) for code in codes]
    return _over_media(values, outputs, batch)


@objective_term("kl_latent", needs={"codes"})
def kl_latent(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Divergence of variational codes from the standard normal (VAE, arXiv 1312.6114)."""
    codes = [code for code in outputs.codes if isinstance(code, GaussianCode)]
    values = [latent_nats(c.mean, c.log_variance, c.mask, c.free_bits) for c in codes]
    return _over_media(values, outputs, batch)
