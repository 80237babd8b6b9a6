"""Terms about one of several given answers: options offered, or classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from modalign.errors import DataError
from modalign.training.objectives import objective_term
from modalign.training.outputs import everyone


def choice_loss(scores: Tensor, right: Tensor, keys: Tensor) -> Tensor:
    """-log of the right options' share of all options' likelihood, mean over questions.

    Args:
        scores: (N,) log-likelihoods of options.
        right: (N,) bool.
        keys: (N,) number of each option's question.
    """
    numbers, place = keys.unique(return_inverse=True)
    own = torch.arange(len(numbers), device=scores.device)[:, None] == place[None]
    among = scores[None].expand(own.shape)
    good = among.masked_fill(~(own & right), -torch.inf).logsumexp(1)
    return (among.masked_fill(~own, -torch.inf).logsumexp(1) - good).mean()


@objective_term("choice", needs={"likelihood"}, whole=True)
def choice(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    right: str = "right",
    wrong: str = "wrong",
    length: Literal["summed", "per byte"] = "summed",
) -> Tensor:
    """Cross-entropy over the options offered: the softmax of their log-likelihoods as answers.

    A record is a question with one of its options as the answer; the options of a question share its group,
    and the right ones have the role ``right``. With ``matched: all`` every option is in the batch, with
    ``matched: true`` the right one and one wrong one. ``per byte`` divides each log-likelihood by the answer's
    UTF-8 bytes, which does not favour short options (as ``eval --task choice`` scores them).
    """
    values, roles, keys = everyone(outputs, batch, "likelihood")
    scores = values[:, 0] if length == "summed" else values[:, 0] / values[:, 1]
    number = {role: batch.role_names.index(role) for role in (right, wrong)}
    offered = (roles == number[right]) | (roles == number[wrong])
    return choice_loss(scores[offered], roles[offered] == number[right], keys[offered])


@objective_term("classify", needs={"pooled:prompt"})
def classify(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    classes: Annotated[tuple[str, ...], Field(min_length=2)],
    head: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "classes",
) -> Tensor:
    """Cross-entropy of a linear head over the state where the answer would begin; the answer is the class.

    The head learns with the stage at the connector's rate and is saved in the model's folder
    (:mod:`modalign.models.heads`).
    """
    there = [n for n, number in enumerate(batch.numbers.tolist()) if number >= 0]
    labels = []
    for place in there:
        record = batch.samples[place].record
        if record.answer not in classes:
            raise DataError(
                f"{record.source}: the answer {record.answer!r} is not one of the classes {', '.join(classes)}"
            )
        labels.append(classes.index(record.answer))
    logits = outputs.maps[head](outputs.pooled("prompt")[there].float()).float()
    targets = torch.tensor(labels, dtype=torch.long, device=logits.device)
    found = functional.cross_entropy(logits, targets, reduction="sum")
    return found / max(batch.num_samples, 1)
