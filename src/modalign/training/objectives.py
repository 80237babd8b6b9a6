"""Objective terms: pure functions ``term(outputs, batch, references) -> scalar``, by name.

A stage's objective is ``{term: weight}``. Each term is normalised by counts over the *whole* batch,
all micro-batches and devices together, so that summing over them gives the batch's value: the mean
over supervised tokens is never a mean of unequal means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import functional

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
