"""Terms that make a model forget the records of a role; combine them with ``cross_entropy`` on those to retain.

Sources: ascent (arXiv 2210.01504), negative preference optimisation (NPO, arXiv 2404.05868), its simple form
(SimNPO, arXiv 2410.07163), self-distillation with one logit lowered (UNDIAL, arXiv 2402.10052), representation
misdirection (RMU, arXiv 2403.03218) with a length relative to the states' own (arXiv 2408.06223).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term
from modalign.training.settings import START
from modalign.training.terms.distillation import COUNTS

Positive = Annotated[float, Field(gt=0)]


@objective_term("ascent")
def ascent(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, limit: Positive | None = None
) -> Tensor:
    """Minus the next-token loss; without a limit it does not stop.

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
    """Negative preference optimisation, mean over records.

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
    ratios = _per_record(own - before, batch)
    return _mean_over_records(2 / beta * functional.softplus(beta * ratios), batch)


@objective_term("simnpo")
def simnpo(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    beta: Positive = 2.5,
    delta: float = 0.0,
) -> Tensor:
    """NPO without a reference, per token of an answer, mean over records.

    -(2 / beta) log sigmoid(beta (NLL / length - delta)), where NLL / length is the mean loss of a record's
    supervised tokens.
    """
    losses = functional.cross_entropy(outputs.logits.float(), batch.targets, reduction="none")
    lengths = _per_record(torch.ones_like(losses), batch).clamp(min=1)
    means = _per_record(losses, batch) / lengths
    return _mean_over_records(2 / beta * functional.softplus(-beta * (means - delta)), batch)


@objective_term("undial", needs={"logits"}, reads={"logits"})
def undial(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    reference: str = START,
    beta: Positive = 10.0,
) -> Tensor:
    """Cross-entropy to softmax(z - beta at the true token), z the reference's logits; mean over tokens."""
    theirs = references[reference].logits
    width = min(outputs.logits.shape[-1], theirs.shape[-1])
    lowered = theirs[:, :width].float().clone()
    lowered[torch.arange(len(lowered)), batch.targets] -= beta
    wanted, own = lowered.softmax(-1), outputs.logits[:, :width].float()
    return functional.cross_entropy(own, wanted, reduction="sum") / max(batch.num_supervised, 1)


@objective_term("rmu", needs={"hidden:{layer}:{at}"}, reads={"hidden:{layer}:{at}"})
def rmu(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    layer: int,
    reference: str = START,
    scale: Positive = 5.0,
    direction: int = 0,
    at: Literal["answers", "media", "tokens"] = "tokens",
) -> Tensor:
    """Squared distance of hidden states from one random direction, mean over positions and values.

    ``scale`` is the length they are driven to, in lengths of the reference's own states; ``direction`` seeds the
    direction. The term ``hidden`` with ``distance: mse`` holds the states of records to retain.
    """
    own = outputs.hidden(layer, at).float()
    before = references[reference].hidden(layer, at).float()
    drawn = torch.randn(own.shape[-1], generator=torch.Generator().manual_seed(direction))
    unit = (drawn / drawn.norm()).to(own.device)
    wanted = scale * before.norm(dim=-1, keepdim=True) * unit
    return (own - wanted).square().mean(-1).sum() / max(getattr(batch, COUNTS[at]), 1)


def _per_record(values: Tensor, batch: Any) -> Tensor:
    """(K,) values of supervised tokens -> (n,) their sums over records."""
    return values.new_zeros(len(batch.samples)).index_add(0, batch.owner, values)


def _mean_over_records(values: Tensor, batch: Any) -> Tensor:
    """(n,) -> their sum over the number of records of the whole batch; those that pad a batch count nothing."""
    return values[batch.numbers >= 0].sum() / max(batch.num_samples, 1)
