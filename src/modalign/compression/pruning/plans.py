"""What is kept: a form, a score and a target become indices per layer and kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from modalign.compression.pruning.scores import Scored, standardised
from modalign.compression.pruning.structure import KINDS, Kind, Stack
from modalign.errors import UsageError

Form = Literal["uniform", "depth", "per_layer", "mask"]
NAMES: dict[Kind, str] = {"mlp": "MLP units", "heads": "key/value groups"}
FORMS: tuple[Form, ...] = ("uniform", "depth", "per_layer", "mask")


@dataclass(frozen=True)
class Plan:
    """What is kept of a part.

    Attributes:
        form: the form of output.
        score: that chose it.
        layers: numbers of the layers that are kept, ascending.
        units: (layer, kind) -> numbers of the units that are kept, ascending; kinds that are kept
            whole are left out.
    """

    form: Form
    score: str
    layers: tuple[int, ...]
    units: dict[tuple[int, Kind], Tensor] = field(default_factory=dict)

    def size(self, stack: Stack) -> int:
        """Parameters that its layers then have, or that are not zero."""
        gone = sum(
            (stack.units[kind].count - len(kept)) * stack.costs[kind]
            for (layer, kind), kept in self.units.items()
            if layer in self.layers
        )
        return stack.layer_size * len(self.layers) - gone

    def widths(self, stack: Stack, layer: int) -> dict[Kind, int]:
        """Units of each kind that a layer keeps."""
        counts = {kind: units.count for kind, units in stack.units.items()}
        return counts | {k: len(kept) for (i, k), kept in self.units.items() if i == layer}

    def words(self, stack: Stack) -> str:
        """``MLP 125 of 172, key/value groups 3 of 4``: for people."""
        said = []
        if len(self.layers) < stack.depth:
            gone = sorted(set(range(stack.depth)) - set(self.layers))
            one = len(gone) == 1
            said.append(f"layer{'' if one else 's'} {', '.join(map(str, gone))} removed")
        for kind, name in NAMES.items():
            kept = [len(v) for (i, k), v in self.units.items() if k == kind and i in self.layers]
            if kept:
                span = f"{min(kept)}" if min(kept) == max(kept) else f"{min(kept)} to {max(kept)}"
                said.append(f"{name} {span} of {stack.units[kind].count}")
        return ", ".join(said) or "nothing removed"


def plan(
    stack: Stack, form: Form, scored: Scored, size: int, kinds: Sequence[Kind] | None = None
) -> Plan:
    """Choose what is kept so that the layers have at most so many parameters.

    Args:
        stack: the part.
        form: of the output.
        scored: units or layers, as the form needs.
        size: parameters of all layers together, at most.
        kinds: that may be cut; None: all that the part has.

    Raises:
        UsageError: the score does not rank what the form removes, or the target is out of reach.
    """
    if size >= stack.size:
        raise UsageError("the target keeps everything: nothing is left to prune")
    if form == "depth":
        return _depth(stack, scored, size)
    chosen = [kind for kind in (kinds or KINDS) if kind in stack.units]
    if missing := [kind for kind in (kinds or ()) if kind not in stack.units]:
        raise UsageError(f"{missing[0]} cannot be pruned: {stack.refused[missing[0]]}")
    if scored.score.of == "layers":
        raise UsageError(
            f"the score {scored.score.name!r} ranks layers: the form {form} removes units of layers; choose "
            "another score, or the form depth"
        )
    if form == "uniform":
        return _uniform(stack, scored, size, chosen)
    return _by_layer(stack, form, scored, size, chosen)


def _depth(stack: Stack, scored: Scored, size: int) -> Plan:
    if scored.layers is None:
        raise UsageError(
            f"the score {scored.score.name!r} does not compare layers: for the form depth choose "
            "block_influence, leave_one_out, or a score that adds up (taylor, l2)"
        )
    keep = math.floor(size / stack.layer_size + 1e-9)
    if stack.depth == 1:
        raise UsageError("the model has one layer left: none can be removed; choose another form")
    if keep < 1:
        raise UsageError(
            f"the target is out of reach: one layer has {stack.layer_size:,} parameters, and {size:,} may stay"
        )
    order = torch.argsort(scored.layers, descending=True, stable=True)
    return Plan("depth", scored.score.name, tuple(sorted(order[:keep].tolist())))


def _uniform(stack: Stack, scored: Scored, size: int, kinds: Sequence[Kind]) -> Plan:
    """The same share of each kind in every layer; rounding of the coarse kind is made up by the fine one."""
    per_layer = size // stack.depth
    counts = {kind: stack.units[kind].count for kind in kinds}
    costs = {kind: stack.costs[kind] for kind in kinds}
    fixed = stack.layer_size - sum(counts[k] * costs[k] for k in kinds)
    least = fixed + sum(costs.values())
    if per_layer < least:
        raise UsageError(
            f"the target is out of reach: with one unit of each kind ({', '.join(kinds)}) in every layer "
            f"{least * stack.depth:,} parameters stay, and {size:,} may"
        )
    share = (per_layer - fixed) / sum(counts[k] * costs[k] for k in kinds)
    keep: dict[Kind, int] = {}
    for kind in sorted(kinds, key=lambda k: -costs[k]):
        rest = [k for k in kinds if k not in keep and k != kind]
        room = per_layer - fixed - sum(keep[k] * costs[k] for k in keep)
        room -= sum(costs[k] for k in rest)
        wanted = round(share * counts[kind]) if rest else math.floor(room / costs[kind])
        keep[kind] = max(1, min(wanted, counts[kind], math.floor(room / costs[kind])))
    units = {
        (layer, kind): _best(scored.units[layer, kind], keep[kind])
        for layer in range(stack.depth)
        for kind in kinds
        if keep[kind] < counts[kind]
    }
    return Plan("uniform", scored.score.name, tuple(range(stack.depth)), units)


def _by_layer(stack: Stack, form: Form, scored: Scored, size: int, kinds: Sequence[Kind]) -> Plan:
    """All units of all layers in one ranking, dearest parameters last; each layer keeps one of each kind."""
    entries: list[tuple[float, int, Kind, int]] = []
    for layer in range(stack.depth):
        for kind in kinds:
            values = scored.units[layer, kind]
            rank = (
                values / stack.costs[kind] if scored.score.additive else standardised(values)
            ).tolist()
            spared = int(values.argmax())
            entries += [(v, layer, kind, u) for u, v in enumerate(rank) if u != spared]
    entries.sort()
    left = stack.size
    gone: dict[tuple[int, Kind], set[int]] = {
        (layer, k): set() for layer in range(stack.depth) for k in kinds
    }
    for _, layer, kind, unit in entries:
        if left <= size:
            break
        gone[layer, kind].add(unit)
        left -= stack.costs[kind]
    # A dear unit may have gone last: others come back in its place.
    for _, layer, kind, unit in reversed(entries):
        if unit in gone[layer, kind] and left + stack.costs[kind] <= size:
            gone[layer, kind].remove(unit)
            left += stack.costs[kind]
    if left > size:
        raise UsageError(
            f"the target is out of reach: with one unit of each kind in every layer {left:,} parameters stay, "
            f"and {size:,} may"
        )
    units = {
        (layer, kind): torch.tensor([u for u in range(stack.units[kind].count) if u not in removed])
        for (layer, kind), removed in gone.items()
        if removed
    }
    return Plan(form, scored.score.name, tuple(range(stack.depth)), units)


def _best(values: Tensor, count: int) -> Tensor:
    """The numbers of the highest values, ascending; of equal ones the first."""
    return torch.argsort(values, descending=True, stable=True)[:count].sort().values
