"""How pretrained weights are read: from safetensors, or a pickle if allowed; whether two models' are equal."""

from __future__ import annotations

import torch
from torch import nn


def safetensors_only(allow_pickle: bool) -> bool | None:
    """Return transformers' setting: safetensors only, or any file (pickles as weights only)."""
    return None if allow_pickle else True


def pickle_hint(error: BaseException) -> str:
    """Return the hint for a message when weights were refused because they are a pickle."""
    if "safetensors" not in str(error):
        return ""
    return (
        ". Weights that are a pickle are not read: save them as safetensors, or give --allow-pickle "
        "(they are then read with weights_only=True)"
    )


def first_difference(model: nn.Module, again: nn.Module) -> str | None:
    """Return the name of the first saved tensor that another model lacks or holds otherwise; None: all are equal.

    Args:
        model: whose tensors are looked up; on any device.
        again: the other, on the CPU; its tensors are converted to the dtype of the model's.
    """
    held = again.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in held or not torch.equal(held[name].to(tensor.dtype), tensor.cpu()):
            return name
    return None
