"""Terms about one vector per record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term
from modalign.training.outputs import everyone


def contrast(anchors: Tensor, positives: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE of P pairs in both directions, averaged: (P, D), (P, D), (P,) numbers of the pairs' groups.

    -log softmax of cos(a_i, p_j) / temperature at j = i. Pairs of the same group have the same content and
    are excluded from each other's negatives.
    """
    a, p = (functional.normalize(each.float(), dim=-1) for each in (anchors, positives))
    alike = a @ p.T / temperature
    same = keys[:, None] == keys[None]
    alike = alike.masked_fill(
        same & ~torch.eye(len(keys), dtype=torch.bool, device=a.device), -torch.inf
    )
    targets = torch.arange(len(keys), device=a.device)
    forth, back = (functional.cross_entropy(logits, targets) for logits in (alike, alike.T))
    return (forth + back) / 2


@objective_term("info_nce", needs={"pooled:{pooling}"}, whole=True)
def info_nce(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    anchor: str = "anchor",
    positive: str = "positive",
    temperature: Annotated[float, Field(gt=0)] = 0.05,
    pooling: Literal["last", "mean"] = "last",
) -> Tensor:
    """InfoNCE of anchors and positives over the whole batch (CPC, arXiv 1807.03748; symmetric as in CLIP).

    Needs a stage of matched roles; the vectors of all micro-batches and processes are contrasted.
    """
    vectors, roles, keys = everyone(outputs, batch, pooling)
    own, theirs = (roles == batch.role_names.index(role) for role in (anchor, positive))
    return contrast(vectors[own], vectors[theirs], keys[own], temperature)
