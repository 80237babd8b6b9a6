"""What MEMIT, PMET and AlphaEdit share: values first, then for each layer read, spread, solve and write."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from modalign.editing.computation import Computation, Solution
from modalign.editing.engine.keys import read_keys_and_outputs
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import Site
from modalign.editing.methods.base import ValueMethod
from modalign.patches.changes import SolvedChange


class ClosedForm(ValueMethod):
    """Write all edits at once, one layer after another.

    Class attributes:
        reads: the site at whose output the residual is taken: the wanted output minus the present one.
        relax: PMET's schedule of the target's weight.
    """

    reads: ClassVar[Site] = "block"
    relax: ClassVar[bool] = False

    def sites(self) -> tuple[Site, ...]:
        """Return the sites of the last layer at which the value optimiser adds its vectors."""
        return ("block",)

    def spread(self, left: int) -> float:
        """Return the residual's divisor when ``left`` layers remain to be written: equal shares."""
        return float(left)

    @abstractmethod
    def change(
        self,
        computation: Computation,
        layer: int,
        keys: Tensor,
        residuals: Tensor,
        edits: tuple[int, ...],
    ) -> SolvedChange:
        """Compute the change of one layer's weight.

        Args:
            computation: provides C0.
            layer: its number.
            keys: K, (d_in, n).
            residuals: R, (D, n), already spread.
            edits: the number of each column's edit, (n,).
        """

    def solve(self, computation: Computation) -> Solution:
        """See :class:`Method`."""
        spec, plan = computation.spec, computation.plan
        layers, requests = plan.layers, plan.requests
        values = computation.values(
            layers[-1], self.sites(), self.config.value_settings(self.relax), requests
        )
        columns, owners = requests, plan.owners
        shifts = torch.stack([value.deltas[self.reads] for value in values], dim=1).double()
        if self.config.keys == "rows":
            columns, origins = each_row(requests)
            owners = tuple(plan.owners[i] for i in origins)
            shifts = shifts[:, origins]
        wanted: Tensor | None = None
        changes: dict[str, SolvedChange] = {}
        for number, layer in enumerate(layers):
            plan.tell("writing", number, len(layers))
            keys, now = read_keys_and_outputs(spec, layer, layers[-1], self.reads, columns)
            wanted = now + shifts if wanted is None else wanted
            residuals = (wanted - now) / self.spread(len(layers) - number)
            change = self.change(computation, layer, keys, residuals, owners)
            name = spec.weight_name(layer)
            computation.weights.add(name, change.delta(), spec.transposed(layer))
            changes[name] = change
        plan.tell("writing", len(layers), len(layers))
        return Solution(changes, values)


def each_row(requests: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """Make each rewriting row a request of its own, bare ones first; also return which request it came from."""
    longest = max(len(request.prompts) for request in requests)
    found, origins = [], []
    for row in range(longest):
        for number, request in enumerate(requests):
            if row < len(request.prompts):
                prompts = request.prompts[row : row + 1]
                found.append(replace(request, prompts=prompts, groups=(0,), shares=(1.0,)))
                origins.append(number)
    return found, origins
