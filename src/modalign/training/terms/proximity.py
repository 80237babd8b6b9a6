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
    outputs: Any, batch: Any, references: Mapping[str, Any], *, reference: str = START
) -> Tensor:
    """Half the squared distance of the trained weights from the reference's (FedProx, arXiv 1812.06127).

    Its weight is the paper's mu. By default the reference is the model as the stage finds it.
    """
    theirs = references[reference].weights
    odd = [n for n, w in outputs.weights.items() if n not in theirs or theirs[n].shape != w.shape]
    if odd:
        raise UsageError(
            f"the term proximal compares weights one by one, and the reference {reference!r} has none "
            f"like {odd[0]} (a saved model has no LoRA weights)"
        )
    squares = [(w.float() - theirs[n].float()).square().sum() for n, w in outputs.weights.items()]
    return torch.stack(squares).sum() / 2 * batch.share
