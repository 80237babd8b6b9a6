"""Terms about the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modalign.errors import UsageError
from modalign.training.objectives import objective_term
from modalign.training.settings import START


@objective_term("proximal", needs={"weights"}, reads={"weights"})
def proximal(
    outputs: Any,
    batch: Any,
    references: Mapping[str, Any],
    *,
    reference: str = START,
    within: list[str] | None = None,
) -> Tensor:
    """Half the squared distance of the trained weights from the reference's (FedProx, arXiv 1812.06127).

    Its weight is the paper's mu. By default the reference is the model as the stage finds it. ``within`` names
    modules by their paths: only their weights count.
    """
    theirs = references[reference].weights
    inside = tuple(f"{path}." for path in within or ())
    own = {n: w for n, w in outputs.weights.items() if within is None or n.startswith(inside)}
    odd = [n for n, w in own.items() if n not in theirs or theirs[n].shape != w.shape]
    if odd:
        raise UsageError(
            f"the term proximal compares weights one by one, and the reference {reference!r} has none "
            f"like {odd[0]} (a saved model has no LoRA weights)"
        )
    squares = [(w.float() - theirs[n].float()).square().sum() for n, w in own.items()]
    if not squares:  # nothing there trains
        return outputs.logits.new_zeros(())
    return torch.stack(squares).sum() / 2 * batch.share
