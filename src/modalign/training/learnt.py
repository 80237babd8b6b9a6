"""What objective terms learn beside the model while a stage trains: maps between states, heads, a temperature.

They train at the connector's rate, are part of checkpoints, and end with the stage; a head is handed over then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modalign.models.heads import Head
from modalign.models.parts import embedding, hidden_size
from modalign.training.objectives import Objective, WeightedTerm
from modalign.training.outputs import MAPS, SCALE, Scale, map_name


def set_learnt(
    model: nn.Module, objective: Objective, widths: Mapping[str, int] | None = None
) -> None:
    """Give the model what the objective's terms learn, and nothing else.

    Args:
        model: a composed model.
        objective: of the stage.
        widths: of the references' hidden states.
    """
    if hasattr(model, MAPS):
        delattr(model, MAPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            part for each in objective.terms for part in _parts(each, hidden_size(model), widths)
        )
    if parts:
        model.add_module(MAPS, nn.ModuleDict(parts).to(embedding(model).weight.device))


def _parts(
    each: WeightedTerm, width: int, widths: Mapping[str, int] | None
) -> list[tuple[str, nn.Module]]:
    options = each.options
    if not each.learns:
        return []
    if options.get("map"):
        reference = options["reference"]
        name = map_name(reference, options["layer"], options["reference_layer"])
        return [(name, nn.Linear(width, (widths or {})[reference], bias=False))]
    if options.get("classes"):
        return [(options["head"], nn.Linear(width, len(options["classes"])))]
    return [(SCALE, Scale(math.log(1 / options["temperature"])))]


def take_learnt(model: nn.Module, objective: Objective) -> dict[str, Head]:
    """Take a finished stage's learnt parts from its model; return its heads by name."""
    own = getattr(model, MAPS, {})
    heads = {
        name: Head(tuple(each.options["classes"]), _whole(own[name].weight), _whole(own[name].bias))
        for each in objective.terms
        if (name := each.options.get("head")) and name in own
    }
    if hasattr(model, MAPS):
        delattr(model, MAPS)
    return heads


def _whole(tensor: Any) -> Tensor:
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    found: Tensor = gathered.detach().float().cpu().clone()
    return found
