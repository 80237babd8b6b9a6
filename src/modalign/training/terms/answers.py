"""Terms about the text of answers: learn it, or forget that of a role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term
from modalign.training.settings import START

Positive = Annotated[float, Field(gt=0)]


@objective_term("cross_entropy")
def cross_entropy(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Next-token loss over supervised tokens.

    ``outputs.logits`` (K, V) are at the K supervised positions, ``batch.targets`` (K,) are their
    ids, ``batch.num_supervised`` counts them over the whole batch.
    """
    loss = functional.cross_entropy(outputs.logits.float(), batch.targets, reduction="sum")
    return loss / batch.num_supervised


@objective_term("ascent")
def ascent(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, limit: Positive | None = None
) -> Tensor:
    """Minus the next-token loss (gradient ascent, arXiv 2210.01504); without a limit it does not stop.

    Tokens whose loss has reached ``limit`` nats are ignored. Combined with ``cross_entropy`` on records to
    retain it is "gradient difference".
    """
    losses = functional.cross_entropy(outputs.logits.float(), batch.targets, reduction="none")
    if limit is not None:
        losses = losses.clamp(max=limit)
    return -losses.sum() / max(batch.num_supervised, 1)


@objective_term("npo", needs={"logits"}, reads={"logits"})
def npo(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    reference: str = START,
    beta: Positive = 0.1,
) -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868), mean over records.

    (2 / beta) softplus(beta log(p / p_ref)), where p is the probability of a record's supervised tokens
    together. At a small beta it is ascent; an already forgotten record (p far below p_ref) has no
    gradient.
    """
    theirs = references[reference].logits
    width = min(outputs.logits.shape[-1], theirs.shape[-1])
    own, before = (
        -functional.cross_entropy(logits[:, :width].float(), batch.targets, reduction="none")
        for logits in (outputs.logits, theirs)
    )
    ratios = own.new_zeros(len(batch.samples)).index_add(0, batch.owner, own - before)
    counted = batch.numbers >= 0
    return 2 / beta * functional.softplus(beta * ratios)[counted].sum() / max(batch.num_samples, 1)
