"""Terms about one vector per record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term
from modalign.training.outputs import FUSED, SCALE, everyone


def contrast(
    anchors: Tensor,
    positives: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    negatives: Tensor | None = None,
    symmetric: bool = True,
) -> Tensor:
    """InfoNCE of P pairs: -log softmax of cos(a_i, p_j) / temperature at j = i.

    Pairs of the same group have the same content or are further positives, and are excluded from each
    other's negatives.

    Args:
        anchors, positives: (P, D).
        keys: (P,) numbers of the pairs' groups.
        temperature: of the softmax.
        negatives: (H, D) hard negatives, which every anchor must not find.
        symmetric: average with the direction from positives to anchors, which has no hard negatives.
    """
    a, p = (functional.normalize(each.float(), dim=-1) for each in (anchors, positives))
    alike = a @ p.T / temperature
    same = keys[:, None] == keys[None]
    alike = alike.masked_fill(
        same & ~torch.eye(len(keys), dtype=torch.bool, device=a.device), -torch.inf
    )
    targets, there = torch.arange(len(keys), device=a.device), alike
    if negatives is not None:
        hard = a @ functional.normalize(negatives.float(), dim=-1).T / temperature
        there = torch.cat([alike, hard], dim=1)
    forth = functional.cross_entropy(there, targets)
    return (forth + functional.cross_entropy(alike.T, targets)) / 2 if symmetric else forth


@objective_term("info_nce", needs={"pooled:{pooling}:{fusion}"}, whole=True)
def info_nce(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    anchor: str = "anchor",
    positive: str = "positive",
    negative: str | None = None,
    symmetric: bool = True,
    temperature: Annotated[float, Field(gt=0)] = 0.05,
    learn_temperature: bool = False,
    pooling: Literal["last", "mean", "prompt", "separator"] = "last",
    fusion: bool = False,
) -> Tensor:
    """InfoNCE of anchors and positives over the whole batch (CPC, arXiv 1807.03748; symmetric as in CLIP).

    Needs a stage of matched roles; the vectors of all micro-batches and processes are contrasted. The role
    ``negative`` holds hard negatives, one for each anchor. With ``learn_temperature``, ``temperature`` is where
    one starts whose logarithm trains at the connector's rate; it never falls below 0.01 (CLIP). The pooling
    ``prompt`` is the state where the first answer would begin, as ``modalign embed`` reads it; ``separator`` the
    one after the first of two notes. With ``fusion`` a gate learns how much of what the encoders saw joins it
    (:class:`modalign.models.prompts.Fusion`; terms with it share one).
    """
    vectors, roles, keys = everyone(outputs, batch, f"pooled:{pooling}{FUSED * fusion}")
    own, theirs, hard = (
        None if role is None else roles == batch.role_names.index(role)
        for role in (anchor, positive, negative)
    )
    negatives = None if hard is None else vectors[hard]
    found: float | Tensor = temperature
    if learn_temperature:  # every part computes the term, and adds its share of this gradient
        scale = outputs.maps[SCALE]()
        found = 1 / (batch.share * scale + (1 - batch.share) * scale.detach())
    return contrast(vectors[own], vectors[theirs], keys[own], found, negatives, symmetric)
