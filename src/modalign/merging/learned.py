"""SoupLM's learnable soup (arXiv 2407.08196): a coefficient per linear map and parent, on a small meta set.

Parents are frozen. Each step puts W = W_1 + sum of a_i (W_i - W_1) into the model; the gradient of a_i is the
inner product of the loss's gradient by W with W_i - W_1. Weights of one map add up to 1; all other tensors keep
the given ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from modalign.data.supervision import Sample
from modalign.errors import ModalignError
from modalign.merging.alignment import Alignment
from modalign.merging.coefficients import Coefficients
from modalign.merging.config import Learning
from modalign.merging.judging import Domain
from modalign.merging.parents import identities, linear_maps
from modalign.merging.writing import Recipe
from modalign.models.projections import evaluating
from modalign.models.saved import open_composed
from modalign.progress import Progress


class Learned(BaseModel):
    """Coefficients that were learnt.

    Attributes:
        parents: in order.
        weights: identity of a linear map -> the parents' weights.
        losses: of every step.
    """

    parents: tuple[str, ...]
    weights: dict[str, tuple[float, ...]]
    losses: list[float]

    def recipe(self, given: Recipe) -> Recipe:
        """Return the linear merge with these coefficients; what has none keeps the given ones."""
        rules = (*given.coefficients.rules, *self.weights.items())
        return replace(given, coefficients=Coefficients(self.parents, rules))


class _Maps:
    """The linear maps of a model as functions of coefficients."""

    def __init__(self, alignment: Alignment, recipe: Recipe, model: nn.Module) -> None:
        self.names = list(alignment.parents)
        known = {identity: name for name, identity in identities(model).items()}
        merged = set(alignment.merged)
        self.identities = [each for each in linear_maps(model) if each in merged]
        self.parameters = [model.get_parameter(known[each]) for each in self.identities]
        self.first, self.others = [], []
        for identity in self.identities:
            first, *rest = [alignment.parents[n].read(identity).float() for n in self.names]
            self.first.append(first)
            self.others.append(torch.stack([each - first for each in rest]))
        self.prior = torch.tensor(
            [_shares(recipe.coefficients.of(each)) for each in self.identities], dtype=torch.float64
        )

    @torch.no_grad()
    def put(self, weights: Tensor) -> None:
        """Give the model the maps of coefficients (maps, parents - 1)."""
        for number, parameter in enumerate(self.parameters):
            moved = torch.tensordot(weights[number].float(), self.others[number], dims=1)
            parameter.copy_(self.first[number] + moved)

    def gradient(self) -> Tensor:
        """Return the gradient by the coefficients, (maps, parents - 1)."""
        rows = []
        for parameter, others in zip(self.parameters, self.others, strict=True):
            assert parameter.grad is not None
            rows.append((others * parameter.grad.cpu()).flatten(1).sum(1))
            parameter.grad = None
        return torch.stack(rows).double()


def _shares(weights: Mapping[str, float]) -> list[float]:
    whole = sum(weights.values())
    return [weight / whole for weight in list(weights.values())[1:]]


def learn(
    alignment: Alignment,
    recipe: Recipe,
    start: Path,
    domains: Mapping[str, Domain],
    learning: Learning,
    *,
    seed: int = 0,
    device: torch.device,
    progress: Progress,
) -> Learned:
    """Learn coefficients on validation data, every domain in equal parts.

    Args:
        alignment: of the parents.
        recipe: the linear merge that it starts from.
        start: folder of that merge.
        domains: the meta set.
        learning: steps, rate, batch, pull.
        seed: of the order of the records.
        device: where the model runs.
        progress: told after each step.

    Raises:
        ModalignError: the loss is not a number.
    """
    opened = open_composed(start)
    model = opened.model.float().to(device)
    model.requires_grad_(False)
    maps = _Maps(alignment, recipe, model)
    for parameter in maps.parameters:
        parameter.requires_grad_(True)
    collator = opened.collator()
    weights = nn.Parameter(maps.prior.clone())
    optimiser = torch.optim.Adam([weights], lr=learning.rate)
    draw = np.random.default_rng(seed)
    losses = []
    with evaluating(model):
        for step in range(learning.steps):
            maps.put(weights)
            batch = collator(_drawn(domains, learning.batch_size, draw)).to(device)
            logits = model(**batch.model_inputs(), use_cache=False).logits.float()
            loss = functional.cross_entropy(logits, batch.targets)
            if not bool(torch.isfinite(loss)):
                raise ModalignError(
                    f"learned: the loss of step {step} is not a number; lower learning.rate"
                )
            loss.backward()
            distance = weights.detach() - maps.prior
            weights.grad = maps.gradient() + 2 * learning.pull * distance / distance.numel()
            optimiser.step()
            losses.append(float(loss.detach()) + learning.pull * float(distance.square().mean()))
            progress(f"learning coefficients (loss {losses[-1]:.3f})", step + 1, learning.steps)
    found = {
        identity: (1 - sum(row), *row)
        for identity, row in zip(maps.identities, weights.tolist(), strict=True)
    }
    return Learned(parents=tuple(maps.names), weights=found, losses=losses)


def _drawn(
    domains: Mapping[str, Domain], count: int, draw: np.random.Generator
) -> Sequence[Sample]:
    """Return samples of a batch, as many of each domain as its turn comes."""
    each = list(domains.values())
    chosen = []
    for number in range(max(count, len(each))):
        samples = each[number % len(each)].samples
        chosen.append(samples[int(draw.integers(len(samples)))])
    return chosen
