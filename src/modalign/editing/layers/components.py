"""Read the inputs and outputs of attention and FFN at one token, layer by layer.

A component's input is what its first linear maps receive (after the norm, if one precedes them); its
output is what is added to the residual stream (after the norm, if one follows the output projection,
as in Gemma 2). Both are found by running the first layer, not by names.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modalign.editing.engine.forward import Inputs, PartialForward, Row, Side, read
from modalign.editing.engine.spec import ModelSpec, SpecError
from modalign.models.projections import evaluating, hidden_of, run_text

Component = Literal["attention", "ffn"]
COMPONENTS: tuple[Component, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class States:
    """States at the last token of B prompts, in float32 or float64.

    Attributes:
        inputs, outputs: per component, (B, layers, D).
        residual: the layers' outputs, (B, layers, D).
    """

    inputs: dict[Component, Tensor]
    outputs: dict[Component, Tensor]
    residual: Tensor


@dataclass(frozen=True)
class Ends:
    """Names of the modules inside a layer whose input and output are a component's."""

    entry: dict[Component, str]
    exit: dict[Component, str]


def find_ends(spec: ModelSpec) -> Ends:
    """Find where components begin and end, from the first layer.

    Raises:
        SpecError: what the layer adds to its input is not the sum of two modules' outputs.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    whole: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.append((name, _flat(args[0]), _flat(output)))

        return hook

    def layer_hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        whole["in"] = _flat(args[0] if args else kwargs["hidden_states"])
        whole["out"] = _flat(hidden_of(output))

    layer = spec.layers[0]
    with ExitStack() as stack, torch.no_grad(), evaluating(spec.language):
        for name, module in layer.named_modules():
            if name:
                stack.enter_context(module.register_forward_hook(note(name)))
        stack.enter_context(layer.register_forward_hook(layer_hook, with_kwargs=True))
        run_text(spec.language, torch.tensor([[5, 7]]))
    outputs = {name: output for name, _, output in calls}
    entry, exits = {}, {}
    for component, name in ((COMPONENTS[0], spec.attention), (COMPONENTS[1], spec.ffn)):
        entry[component] = _entry(layer, calls, name)
        exits[component] = name if spec.additive else _norm_after(layer, calls, name)
    added = whole["in"] + sum(outputs[name] for name in exits.values())
    if (added - whole["out"]).abs().max() > 0.02 * whole["out"].abs().max():
        raise SpecError(
            f"a layer of {type(spec.language).__name__} is not its input plus attention plus FFN "
            "(scaled residuals?); what its components put out cannot be told apart"
        )
    return Ends(entry, exits)


def _flat(value: Tensor) -> Tensor:
    return value.detach().reshape(-1, value.shape[-1])


def _entry(layer: nn.Module, calls: Sequence[tuple[str, Tensor, Tensor]], projection: str) -> str:
    """Return the component's first linear map to run, other than the output projection."""
    modules = dict(layer.named_modules())
    parent = projection.rpartition(".")[0]
    for name, _, _ in calls:
        if isinstance(modules[name], nn.Linear | Conv1D) and name.rpartition(".")[0] == parent:
            return name
    raise SpecError(f"no linear map beside {projection} was run")


def _norm_after(
    layer: nn.Module, calls: Sequence[tuple[str, Tensor, Tensor]], projection: str
) -> str:
    """Return the norm right after a projection, or the projection itself."""
    written = next(output for name, _, output in calls if name == projection)
    children = {name for name, _ in layer.named_children()}
    for name, given, output in calls:
        alike = given.shape == written.shape == output.shape and torch.equal(given, written)
        if name in children and alike and not torch.equal(output, written):
            return name
    return projection


def read_states(spec: ModelSpec, ends: Ends, prompts: Sequence[Row]) -> States:
    """Run prompts once, and keep the components' inputs and outputs at the last token."""
    rows = [Row(row.ids, len(row) - 1, row.embeds) for row in prompts]
    wanted: dict[tuple[Side, str, int], tuple[nn.Module, Side]] = {}
    for number, layer in enumerate(spec.layers):
        for c in COMPONENTS:
            wanted["input", c, number] = layer.get_submodule(ends.entry[c]), "input"
            wanted["output", c, number] = layer.get_submodule(ends.exit[c]), "output"
        wanted["output", "residual", number] = layer, "output"
    seen = read(spec, rows, wanted)

    def stacked(side: Side, name: str) -> Tensor:
        return torch.stack([seen[side, name, layer] for layer in range(spec.depth)], dim=1)

    return States(
        inputs={c: stacked("input", c) for c in COMPONENTS},
        outputs={c: stacked("output", c) for c in COMPONENTS},
        residual=stacked("output", "residual"),
    )


class Lens:
    """Read vectors as the model reads its last layer's output: through the final norm, the head and the rest.

    (The logit lens, nostalgebraist 2020.)
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.forward = PartialForward(spec, spec.depth - 1, ["block"])
        self.base = self.forward.prepare(Inputs.of([Row((5,), 0)], spec))

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return logits (N, V) of vectors (N, D)."""
        n = len(vectors)
        rows = torch.arange(n, device=vectors.device)
        base = self.base.select(torch.zeros_like(rows))
        there = base.hidden[:, 0].to(self.spec.exact)
        with torch.no_grad(), evaluating(self.spec.language):
            return self.forward.logits(
                base, {"block": vectors - there}, (rows, torch.zeros_like(rows))
            )
