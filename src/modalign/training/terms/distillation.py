"""Terms that compare the model's predictions or hidden states with a reference's.

Sources: distillation with a temperature (Hinton et al., arXiv 1503.02531); the generalised Jensen-Shannon
divergence (GKD, arXiv 2306.13649); divergence at image positions and relations between them (LLaVA-KD,
arXiv 2410.16236). Logits beyond a reference's vocabulary are dropped, and the rest is renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from modalign.errors import UsageError
from modalign.training.objectives import objective_term
from modalign.training.outputs import TopWords, map_name

Temperature = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, le=1)]
COUNTS = {
    "answers": "num_supervised",
    "media": "num_media_positions",
    "tokens": "num_positions",
}


CHUNK = 1 << 24  # logits whose log-probabilities are held at once


def divergence(
    logits: Tensor, reference: Tensor | TopWords, temperature: float, beta: float
) -> Tensor:
    """(R,) nats between two predictions, (R, V) and (R, V') logits, over their first min(V, V') words.

    In chunks of positions, of which only the logits are kept for the backward pass. A stored reference
    (:class:`modalign.training.outputs.TopWords`) is compared over its words and all others as one.

    With P the reference's and Q the model's distribution at a temperature, and M = beta P + (1 - beta) Q:
    beta KL(P || M) + (1 - beta) KL(Q || M); at beta 0 its slope KL(P || Q), at beta 1 KL(Q || P). Times
    the squared temperature, which keeps the scale of gradients.
    """
    rows = max(CHUNK // logits.shape[-1], 1)
    if len(logits) <= rows:
        return _divergence(logits, reference, temperature, beta)
    parts = [
        checkpoint(
            _divergence,
            logits[start : start + rows],
            reference[start : start + rows],
            temperature,
            beta,
            use_reentrant=False,
        )
        for start in range(0, len(logits), rows)
    ]
    return torch.cat(parts)


def _divergence(
    logits: Tensor, reference: Tensor | TopWords, temperature: float, beta: float
) -> Tensor:
    if isinstance(reference, TopWords):
        q, p = _of_top(logits, reference, temperature)
    else:
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


def _of_top(logits: Tensor, reference: TopWords, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the model's and the reference's log-probabilities of the stored words and, last, of all others."""
    q = (logits[:, : reference.vocabulary].float() / temperature).log_softmax(-1)
    top = q.gather(1, reference.ids)
    if reference.ids.shape[1] == q.shape[1]:  # there are no others
        return top, reference.values[:, :-1].log_softmax(-1)
    others = q.scatter(1, reference.ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top, others], -1), reference.values.log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """(R,) KL(P || Q) of log-probabilities (R, V)."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def _divergence_term(rows: str, count: str) -> Callable[..., Tensor]:
    def term(
        outputs: Any,
        batch: Any,
        references: Mapping[str, Any],
        *,
        reference: str = "teacher",
        temperature: Temperature = 1.0,
        beta: Beta = 0.0,
    ) -> Tensor:
        """Divergence from the reference's predictions, mean over the positions of the whole batch."""
        own, theirs = (getattr(each, rows) for each in (outputs, references[reference]))
        found = divergence(own, theirs, temperature, beta).sum()
        return found / max(getattr(batch, count), 1)

    return term


# At supervised positions and at media positions, for any number of media in a record.
for _name, _rows, _count in (
    ("kl_answer", "logits", "num_supervised"),
    ("kl_visual", "media_logits", "num_media_positions"),
):
    objective_term(_name, needs={_rows}, reads={_rows})(_divergence_term(_rows, _count))


@objective_term("relation", needs={"media_logits"}, reads={"media_logits"})
def relation(
    outputs: Any, batch: Any, references: Mapping[str, Any], *, reference: str = "teacher"
) -> Tensor:
    """1 - cos(vec(Z Z'), vec(T T')) of a record's logits at media positions, mean over records with media.

    Z (I, V) are the model's, T the reference's: the similarities between positions.
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


@objective_term("hidden", needs={"hidden:{layer}:{at}"}, reads={"hidden:{reference_layer}:{at}"})
def hidden(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    layer: int,
    reference_layer: int | None = None,
    reference: str = "teacher",
    at: Literal["answers", "media", "tokens"] = "answers",
    distance: Literal["cosine", "mse"] = "cosine",
    map: bool = False,
) -> Tensor:
    """Distance of hidden states from the reference's, mean over positions (FitNets, arXiv 1412.6550).

    ``cosine`` is 1 - cos, ``mse`` the mean over the D values of the squared difference. Layer 0 is the
    embeddings, n the output of the n-th decoder layer, -1 that of the last one, before the final norm.
    The reference's layer defaults to the same. With ``map`` the model's states first go through a linear map
    without bias that learns with the stage, so widths may differ.
    """
    own = outputs.hidden(layer, at).float()
    assert reference_layer is not None
    if map:
        own = outputs.maps[map_name(reference, layer, reference_layer)](own).float()
    theirs = references[reference].hidden(reference_layer, at).float()
    if own.shape != theirs.shape:
        raise UsageError(
            f"the term hidden compares states of one width; the model's have width {own.shape[-1]}, those "
            f"of the reference {reference!r} {theirs.shape[-1]}; "
            "map: true learns a map between them"
        )
    if distance == "mse":
        values = (own - theirs).square().mean(-1)
    else:
        values = 1 - functional.cosine_similarity(own, theirs, dim=-1)
    return values.sum() / max(getattr(batch, COUNTS[at]), 1)
