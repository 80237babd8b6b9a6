"""Terms about the text of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from modalign.training.objectives import objective_term


@objective_term("cross_entropy")
def cross_entropy(outputs: Any, batch: Any, references: Mapping[str, Any]) -> Tensor:
    """Next-token loss over supervised tokens.

    ``outputs.logits`` (K, V) are at the K supervised positions, ``batch.targets`` (K,) are their
    ids, ``batch.num_supervised`` counts them over the whole batch.
    """
    loss = functional.cross_entropy(outputs.logits.float(), batch.targets, reduction="sum")
    return loss / batch.num_supervised
