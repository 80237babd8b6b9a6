"""Attacks that bring back what was only hidden: rounding, pruning and relearning."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.data.records import Record
from modalign.data.supervision import tokenise_all
from modalign.models.saved import composed_of
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning

GROUP = 32  # values of a row that share a scale


def round_to(bits: int) -> Callable[[Tensor], Tensor]:
    """Return symmetric rounding of groups of 32 values of a row, each by its largest value."""
    most = 2 ** (bits - 1) - 1

    def rounded(weight: Tensor) -> Tensor:
        rows, width = weight.shape
        padded = nn.functional.pad(weight, (0, -width % GROUP)).reshape(rows, -1, GROUP)
        scale = padded.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
        return ((padded / scale).round() * scale).reshape(rows, -1)[:, :width]

    return rounded


def prune_to(share: float) -> Callable[[Tensor], Tensor]:
    """Return pruning of the share of a matrix's values that are smallest."""

    def pruned(weight: Tensor) -> Tensor:
        count = int(weight.numel() * share)
        if not count:
            return weight
        least = weight.abs().flatten().kthvalue(count).values
        return torch.where(weight.abs() <= least, torch.zeros_like(weight), weight)

    return pruned


WEIGHT_ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "8 bits": round_to(8),
    "4 bits": round_to(4),
    "25 % pruned": prune_to(0.25),
}
RELEARNED = "relearned"
ATTACKS = (*WEIGHT_ATTACKS, RELEARNED)


@contextmanager
def attacked(model: nn.Module, attack: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change every matrix of a model's linear layers and embeddings, and restore them afterwards."""
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() == 2}
    own = dict(model.named_parameters())
    try:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(attack(value.float()))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)


def relearned(
    model: Any,
    reader: Any,
    records: Sequence[Record],
    *,
    steps: int = 20,
    rate: float = 3e-4,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Return a copy of a model that was trained again on some of the facts.

    Args:
        model, reader: as they were opened.
        records: as the facts are asked in training.
        steps: with all records in each.
        rate: of AdamW over all weights of the language model.
        seed: of the order.
    """  # fmt: skip
    opened = composed_of(copy.deepcopy(model), reader, "the model")
    settings = TrainSettings(
        llm="full",
        learning_rates=LearningRates(connector=0, llm=rate, encoder=0),
        batch_size=len(records),
        device=str(model.device),
        val_points=1,
    )
    samples = tokenise_all(records, opened.tokenizer)
    tuning = Tuning(opened, [Stage(name="relearn")], settings, samples, seed=seed)
    with tempfile.TemporaryDirectory() as work:
        tuning.run(Budget("samples", steps * len(records)), Path(work))
    return (opened.model.language_model if opened.plain else opened.model), opened.reader
