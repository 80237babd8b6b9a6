"""What is learnt beside the model while a stage trains: maps between states, heads, a temperature, a soft token.

They train at the connector's rate, are part of checkpoints, and end with the stage; heads and fusion are handed
over then, and a soft token's embedding becomes a row of the model's table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modalign.models.heads import Head
from modalign.models.parts import embedding, hidden_size
from modalign.models.prompts import Fusion
from modalign.training.objectives import Objective, WeightedTerm
from modalign.training.outputs import FUSION, MAPS, SCALE, Scale, map_name

SOFT = "soft_token"  # among what is learnt


class SoftToken(nn.Module):
    """A token whose embedding trains while the table stays as it is, until the stage ends.

    Where the output projection is the table itself, its row trains there, too.

    Args:
        model: a composed model; its passes use the row until :meth:`release`.
        token: its id.
    """

    def __init__(self, model: Any, token: int) -> None:
        super().__init__()
        table, head = embedding(model), model.get_output_embeddings()
        own = table.weight[token].detach()
        self.token, self.row = token, nn.Parameter(own.float().clone())
        with torch.no_grad():  # some tables scale what they give
            given = table(torch.tensor([token], device=own.device))[0]
        self.scale = float(given.float().norm() / own.float().norm().clamp(min=1e-12))
        self._hooks = [table.register_forward_hook(self._embed)]
        if head is not None and head.weight is table.weight:
            self._hooks.append(head.register_forward_hook(self._project))

    def _embed(self, _: nn.Module, given: Any, output: Tensor) -> Tensor:
        here = (given[0] == self.token)[..., None]
        return torch.where(here, (self.row * self.scale).to(output.dtype), output)

    def _project(self, _: nn.Module, given: Any, output: Tensor) -> Tensor:
        here = torch.arange(output.shape[-1], device=output.device) == self.token
        return torch.where(here, given[0] @ self.row.to(given[0].dtype)[:, None], output)

    def release(self) -> None:
        """Leave the model."""
        for hook in self._hooks:
            hook.remove()


def set_learnt(
    model: nn.Module,
    objective: Objective,
    widths: Mapping[str, int] | None = None,
    soft: int | None = None,
) -> None:
    """Give the model what a stage learns beside it, and nothing else.

    Args:
        model: a composed model.
        objective: of the stage.
        widths: of the references' hidden states.
        soft: a token whose embedding trains.
    """
    _leave(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(part for each in objective.terms for part in _parts(each, model, widths))
    if soft is not None:
        parts[SOFT] = SoftToken(model, soft)
    if parts:
        model.add_module(MAPS, nn.ModuleDict(parts).to(embedding(model).weight.device))


def _leave(model: nn.Module) -> None:
    own = getattr(model, MAPS, {})
    if SOFT in own:
        own[SOFT].release()
    if hasattr(model, MAPS):
        delattr(model, MAPS)


def _parts(
    each: WeightedTerm, model: nn.Module, widths: Mapping[str, int] | None
) -> list[tuple[str, nn.Module]]:
    options, width = each.options, hidden_size(model)
    found: list[tuple[str, nn.Module]] = []
    if options.get("map"):
        reference = options["reference"]
        name = map_name(reference, options["layer"], options["reference_layer"])
        found.append((name, nn.Linear(width, (widths or {})[reference], bias=False)))
    if options.get("classes"):
        found.append((options["head"], nn.Linear(width, len(options["classes"]))))
    if options.get("learn_temperature"):
        found.append((SCALE, Scale(math.log(1 / options["temperature"]))))
    if options.get("fusion"):
        found.append((FUSION, Fusion.of(model)))
    return found


def take_learnt(model: nn.Module, objective: Objective) -> tuple[dict[str, Head], Fusion | None]:
    """Take a finished stage's learnt parts from its model; return its heads by name, and its fusion."""
    own = getattr(model, MAPS, {})
    heads = {
        name: Head(tuple(each.options["classes"]), _whole(own[name].weight), _whole(own[name].bias))
        for each in objective.terms
        if (name := each.options.get("head")) and name in own
    }
    if SOFT in own:
        with torch.no_grad():
            embedding(model).weight[own[SOFT].token] = own[SOFT].row
    fusion = None
    if FUSION in own:
        fusion = Fusion.of(model)
        fusion.load_state_dict({name: _whole(p) for name, p in own[FUSION].named_parameters()})
        fusion.eval().requires_grad_(False)
    _leave(model)
    return heads, fusion


def _whole(tensor: Any) -> Tensor:
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    found: Tensor = gathered.detach().float().cpu().clone()
    return found
