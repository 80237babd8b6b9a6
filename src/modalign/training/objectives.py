"""Objective terms: pure functions ``term(outputs, batch, references) -> scalar``, by name.

A stage's objective is ``{term: weight}``. Each term is normalised by counts over the *whole* batch,
all micro-batches and devices together, so that summing over them gives the batch's value: the mean
over supervised tokens is never a mean of unequal means. Terms about media are means over media
(``batch.num_media``).

Terms of connectors with a code read ``outputs.codes``: of stage one's auto-encoder, or of every
connector of the whole model that has one, for the media of this batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from modalign.connectors.codes import DiscreteCode, GaussianCode
from modalign.errors import UsageError
from modalign.training import stage_one_losses

Term = Callable[[Any, Any, Mapping[str, Any]], Tensor]
_TERMS: dict[str, Term] = {}
F = TypeVar("F", bound=Term)


def objective_term(name: str) -> Callable[[F], F]:
    """Decorator: register a term under an exact name; a duplicate is an error."""

    def register(function: F) -> F:
        if name in _TERMS:
            raise UsageError(f"objective term {name!r} is registered twice")
        _TERMS[name] = function
        return function

    return register


def term(name: str) -> Term:
    """Return the term of exactly this name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in _TERMS:
        raise UsageError(
            f"no objective term is called {name!r}; there are {', '.join(sorted(_TERMS))}"
        )
    return _TERMS[name]


@objective_term("cross_entropy")
def cross_entropy(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Next-token loss over supervised tokens.

    ``outputs.logits`` (K, V) stand at the K supervised positions, ``batch.targets`` (K,) are their
    ids, ``batch.num_supervised`` counts them over the whole batch.
    """
    loss = functional.cross_entropy(outputs.logits.float(), batch.targets, reduction="sum")
    return loss / batch.num_supervised


@objective_term("image_text_contrastive")
def image_text_contrastive(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Stage 1 of the Q-Former, first loss (BLIP-2, arXiv 2301.12597)."""
    return stage_one_losses.image_text_contrastive(
        outputs.image_to_text, outputs.text_to_image, outputs.item_ids
    )


@objective_term("image_text_matching")
def image_text_matching(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Stage 1 of the Q-Former, second loss."""
    return stage_one_losses.image_text_matching(outputs.match_logits, outputs.match_targets)


@objective_term("image_grounded_captioning")
def image_grounded_captioning(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Stage 1 of the Q-Former, third loss."""
    return stage_one_losses.image_grounded_captioning(
        outputs.caption_logits, outputs.caption_targets
    )


def _over_media(values: list[Tensor], outputs: Any, batch: Any) -> Tensor:
    """Mean over the media of the whole batch of (B,) values; zero where no medium has any."""
    if not values:
        return outputs.logits.new_zeros((), dtype=torch.float32)
    return torch.cat(values).sum() / batch.num_media


@objective_term("reconstruction")
def reconstruction(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Error of the features rebuilt from the code, in stage one of connectors with a code."""
    values = stage_one_losses.reconstruction(outputs.rebuilt, outputs.target, outputs.mask)
    return _over_media([values], outputs, batch)


@objective_term("codebook")
def codebook(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Chosen codebook vectors move to what chose them (VQ-VAE, arXiv 1711.00937)."""
    codes = [code for code in outputs.codes if isinstance(code, DiscreteCode)]
    values = [stage_one_losses.codebook(code.inputs, code.vectors, code.mask) for code in codes]
    return _over_media(values, outputs, batch)


@objective_term("commitment")
def commitment(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """The encoder moves to the vectors it chose; the paper's weight is 0.25."""
    codes = [code for code in outputs.codes if isinstance(code, DiscreteCode)]
    values = [stage_one_losses.commitment(code.inputs, code.vectors, code.mask) for code in codes]
    return _over_media(values, outputs, batch)


@objective_term("kl_latent")
def kl_latent(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Divergence of variational codes from the standard normal (VAE, arXiv 1312.6114)."""
    codes = [code for code in outputs.codes if isinstance(code, GaussianCode)]
    values = [
        stage_one_losses.kl_latent(code.mean, code.log_variance, code.mask, code.free_bits)
        for code in codes
    ]
    return _over_media(values, outputs, batch)
