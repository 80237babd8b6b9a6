"""Terms that compare the model's predictions with a reference's.

Sources: distillation with a temperature (Hinton et al., arXiv 1503.02531); the generalised Jensen-Shannon
divergence (GKD, arXiv 2306.13649); divergence at image positions and relations between them (LLaVA-KD,
arXiv 2410.16236). Logits beyond a reference's own vocabulary are left out, and the rest is renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term

Temperature = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, le=1)]


def divergence(logits: Tensor, reference: Tensor, temperature: float, beta: float) -> Tensor:
    """(R,) nats between two predictions, (R, V) and (R, V') logits, over their first min(V, V') words.

    With P the reference's and Q the model's distribution at a temperature, and M = beta P + (1 - beta) Q:
    beta KL(P || M) + (1 - beta) KL(Q || M); at beta 0 its slope KL(P || Q), at beta 1 KL(Q || P). Times
    the temperature's square, which keeps gradients as large as at temperature 1.
    """
    width = min(logits.shape[-1], reference.shape[-1])
    q = (logits[:, :width].float() / temperature).log_softmax(-1)
    p = (reference[:, :width].float() / temperature).log_softmax(-1)
    if beta == 0:
        found = _kl(p, q)
    elif beta == 1:
        found = _kl(q, p)
    else:
        mixed = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
        found = beta * _kl(p, mixed) + (1 - beta) * _kl(q, mixed)
    return found * temperature**2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """(R,) KL(P || Q) of log-probabilities (R, V)."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


@objective_term("kl_answer", needs={"logits"}, reads={"logits"})
def kl_answer(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    reference: str = "teacher",
    temperature: Temperature = 1.0,
    beta: Beta = 0.0,
) -> Tensor:
    """Divergence from the reference's predictions, mean over supervised positions."""
    theirs = references[reference].logits
    return divergence(outputs.logits, theirs, temperature, beta).sum() / batch.num_supervised


@objective_term("kl_visual", needs={"media_logits"}, reads={"media_logits"})
def kl_visual(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    reference: str = "teacher",
    temperature: Temperature = 1.0,
    beta: Beta = 0.0,
) -> Tensor:
    """The same at the positions that media take, mean over those; any number of media in a record."""
    theirs = references[reference].media_logits
    found = divergence(outputs.media_logits, theirs, temperature, beta).sum()
    return found / max(batch.num_media_positions, 1)


@objective_term("relation", needs={"media_logits"}, reads={"media_logits"})
def relation(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, reference: str = "teacher"
) -> Tensor:
    """1 - cos(vec(Z Z'), vec(T T')) of a record's logits at media positions, mean over records with media.

    Z (I, V) are the model's, T the reference's: how alike its positions are to each other.
    """
    own, theirs = outputs.media_logits.float(), references[reference].media_logits.float()
    width = min(own.shape[-1], theirs.shape[-1])
    owners = batch.owners("media")
    total = own.sum() * 0
    for number in owners.unique():
        mine, other = own[owners == number, :width], theirs[owners == number, :width]
        alike = functional.cosine_similarity(
            (mine @ mine.T).flatten(), (other @ other.T).flatten(), dim=0
        )
        total = total + 1 - alike
    return total / max(batch.num_media_samples, 1)
