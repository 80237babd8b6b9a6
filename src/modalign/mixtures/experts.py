"""Merged experts: models trained on one source each, merged by a mixture's weights instead of training on it.

Merging is a cheap stand-in for training on a mixture (arXiv 2602.04937). What is merged are the weights that
training changed; a LoRA counts by its product, since the mean of products is not the product of means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from modalign.merging.deltas import Deltas
from modalign.merging.registry import MergeMethod
from modalign.training.tuning import Tuning

Weights = dict[str, Tensor]
ADAPTER = "default"


def weights_of(tuning: Tuning) -> Weights:
    """Return copies of all that training changes: parameters, and the weights that LoRA adds to, merged."""
    found = {n: t.detach().clone() for n, t in tuning.trained_state().items() if "lora_" not in n}
    with torch.no_grad():
        for name, layer in _adapted(tuning):
            weight = layer.base_layer.weight
            found[name] = (weight + layer.get_delta_weight(ADAPTER)).detach().clone()
    return found


@contextmanager
def replaced(tuning: Tuning, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put merged weights into the model; afterwards it is bit for bit as it was."""
    layers = dict(_adapted(tuning))
    parameters = dict(tuning.model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in weights}
    ups = {name: layer.lora_B[ADAPTER].weight for name, layer in layers.items()}
    for name, up in ups.items():
        kept[f"{name}/lora_B"] = up.detach().clone()
    try:
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
            for up in ups.values():
                up.zero_()
        yield
    finally:
        with torch.no_grad():
            for name in weights:
                parameters[name].copy_(kept[name])
            for name, up in ups.items():
                up.copy_(kept[f"{name}/lora_B"])


def merged(
    origin: Weights,
    experts: Mapping[str, Weights],
    mixture: Mapping[str, float],
    method: MergeMethod,
    options: Mapping[str, Any],
    seed: int,
) -> Weights:
    """Merge experts by a mixture's weights.

    Args:
        origin: the start that all were trained from.
        experts: source -> weights.
        mixture: source -> weight; sources of weight 0 take no part.
        method, options: of merging.
        seed: of methods that draw.

    Raises:
        DataError: an expert's weights are not finite.
    """
    shares = {name: weight for name, weight in mixture.items() if weight}
    found: Weights = {}
    for name, start in origin.items():
        rows = start.reshape(1) if start.dim() == 0 else start
        parents = {source: experts[source][name].reshape(rows.shape) for source in shares}
        deltas = Deltas(name, rows, parents, seed)
        moved = torch.cat(list(method.merged(deltas, shares, options)))
        found[name] = (rows.double() + moved).to(start.dtype).reshape(start.shape)
    return found


def _adapted(tuning: Tuning) -> Iterator[tuple[str, Any]]:
    """Yield the name of each weight that a LoRA adds to, and its module."""
    for path, module in tuning.model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{path}.base_layer.weight", module
