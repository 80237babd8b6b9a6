"""A plan as a model folder: written, and checked against the unpruned model with the units silenced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign.compression.pruning.evidence import Evidence, skipped
from modalign.compression.pruning.plans import Plan
from modalign.compression.pruning.shapes import CODE, FileNames, Shape, compensation
from modalign.compression.pruning.structure import Kind, Stack
from modalign.data.supervision import Sample
from modalign.errors import ModalignError
from modalign.files import write_atomically
from modalign.models.collation import Collator
from modalign.models.projections import evaluating
from modalign.patches.folder_weights import INDEX, PART, FolderWeights
from modalign.patches.patched_folder import PATCHES
from modalign.patches.pruned_folder import CONFIG, write_weights

TOLERANCE = 1e-4  # of logits in float32, relative to the largest: sums run in another order
CHECKED = 4  # samples


def write_candidate(
    source: Path, stack: Stack, plan: Plan, names: FileNames, shape: Shape, target: Path
) -> None:
    """Write the pruned model's folder; what is there is replaced.

    Args:
        source: the unpruned model's folder.
        stack, plan, names, shape: what is kept, and how it is said.
        target: the folder; it is a model only once this has returned.
    """
    shutil.rmtree(target, ignore_errors=True)
    weights = FolderWeights(source)
    apart = {*weights.files, CONFIG, INDEX, PATCHES}

    def ignored(place: str, found: list[str]) -> set[str]:
        top = Path(place) == source
        return {n for n in found if n.endswith(PART) or (top and (n in apart or n.startswith(".")))}

    shutil.copytree(source, target, ignore=ignored)
    zeros = _zeros(stack, plan, names) if plan.form == "mask" else {}

    def changed(name: str, value: Tensor) -> Tensor:
        if name in shape.changed:
            return shape.changed[name].to(value.dtype).reshape(value.shape)
        for axis, index in zeros.get(name, []):
            value = value.index_fill(axis, index, 0)
        return value

    write_weights(weights, target, shape.cuts, changed=changed, added=shape.added)
    if shape.code:
        write_atomically(target / CODE, shape.code)
    text = json.dumps(shape.configuration, indent=2, sort_keys=True) + "\n"
    write_atomically(target / CONFIG, text)


def _zeros(stack: Stack, plan: Plan, names: FileNames) -> dict[str, list[tuple[int, Tensor]]]:
    """Of a mask: tensor in the files -> axes and indices that become zero."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for (layer, kind), kept in plan.units.items():
        gone = _gone(stack, kind, kept)
        for part in stack.units[kind].slices:
            name = names.names[stack.parameter(layer, part.name)]
            found.setdefault(name, []).append((part.axis, part.indices[gone].flatten()))
    return found


def _gone(stack: Stack, kind: Kind, kept: Tensor) -> Tensor:
    gone = torch.ones(stack.units[kind].count, dtype=torch.bool)
    gone[kept] = False
    return gone


@contextmanager
def silenced(stack: Stack, plan: Plan, evidence: Evidence | None = None) -> Iterator[None]:
    """The unpruned model computing what the pruned one must; afterwards as it was.

    Args:
        stack, plan: what is kept.
        evidence: for the biases of a compensated plan.
    """
    handles = _biased(stack, plan, evidence) if evidence else []
    own: dict[Any, Tensor] = {}
    with ExitStack() as removed:
        for layer, module in enumerate(stack.layers):
            if layer not in plan.layers:
                removed.enter_context(skipped(module))
        try:
            for (layer, kind), kept in plan.units.items():
                units = stack.units[kind]
                last = units.slices[-1]
                weight: Any = stack.layers[layer].get_submodule(units.output).weight
                own[weight] = weight.data
                index = last.indices[_gone(stack, kind, kept)].flatten().to(weight.device)
                weight.data = weight.data.index_fill(last.axis, index, 0)
            yield
        finally:
            for weight, value in own.items():
                weight.data = value
            for handle in handles:
                handle.remove()


def _biased(stack: Stack, plan: Plan, evidence: Evidence) -> list[Any]:
    handles = []
    for layer in plan.layers:
        for name, bias in compensation(stack, plan, layer, evidence).items():
            module = stack.layers[layer].get_submodule(name.removesuffix(".bias"))
            handles.append(module.register_forward_hook(_adding(bias)))
    return handles


def _adding(bias: Tensor) -> Any:
    return lambda module, args, output: output + bias.to(output)


@torch.no_grad()
def logits_on(model: Any, collator: Collator, samples: Sequence[Sample]) -> Tensor:
    """Logits at supervised positions, (K, V), float32."""
    with evaluating(model):
        batch = collator(list(samples)).to(model.device)
        found: Tensor = model(**batch.model_inputs(), use_cache=False).logits.float().cpu()
    return found


def check_logits(wanted: Tensor, found: Tensor, what: str, tolerance: float = TOLERANCE) -> float:
    """The largest difference of logits.

    Raises:
        ModalignError: it is larger than rounding explains.
    """
    difference = float((wanted - found).abs().max())
    if not difference <= tolerance * max(1.0, float(wanted.abs().max())):
        raise ModalignError(
            f"{what} does not compute what the model with these units silenced does: logits differ by "
            f"{difference:.2e}"
        )
    return difference
