"""What can be removed from a model: MLP units, key/value groups with their query heads, layers.

Nothing is read off names. The linear maps of the first layer are made leaves of a small graph, and gradients
tell which of their outputs reach which inputs of the layer's two output projections (of attention and MLP):

* an **MLP unit** is an input of the MLP's output projection with the outputs that it alone depends on (of
  gate and up, which may be one fused map);
* a **key/value group** is a set of query heads that share keys or values, with every output of q, k and v (which
  may be fused in any order) that reaches them, and their inputs of the output projection.

Where a map or a norm mixes units, so that none can be removed without changing others, the kind is refused with
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modalign.errors import UsageError
from modalign.models.parts import PartNotFoundError, decoder_layers, hidden_size
from modalign.models.projections import (
    evaluating,
    language_part,
    output_projections,
    run_text,
    two_texts,
)

Kind = Literal["mlp", "heads"]
KINDS: tuple[Kind, ...] = ("mlp", "heads")
PartName = Literal["language", "vision"]
TOKENS = (5, 6, 7, 8)  # of the probe: any will do, different ones


@dataclass(frozen=True)
class Slice:
    """The part of one parameter that units own.

    Attributes:
        name: of the parameter inside a layer.
        axis: along which units own it.
        indices: (U, k), ascending in each row; unit u owns row u.
    """

    name: str
    axis: int
    indices: Tensor


@dataclass(frozen=True)
class Units:
    """The units of one kind in a layer; every layer has as many.

    Attributes:
        kind: which.
        count: U.
        slices: what they own.
        output: name of the output projection inside a layer.
        heads: query heads of one unit; 0 for MLP units.
    """

    kind: Kind
    count: int
    slices: tuple[Slice, ...]
    output: str
    heads: int = 0

    def cost(self, layer: nn.Module) -> int:
        """Parameters of one unit."""
        sizes = dict(layer.named_parameters())
        return sum(
            s.indices.shape[1] * sizes[s.name].numel() // sizes[s.name].shape[s.axis]
            for s in self.slices
        )


@dataclass(frozen=True)
class Stack:
    """A model's part with layers, and the units in them.

    Attributes:
        whole: the model.
        part: its language model, or its vision tower.
        name: which of the two.
        layers: of the part, alike.
        prefix: their name in the whole model.
        units: by kind.
        refused: kind -> why its units cannot be told apart.
    """

    whole: PreTrainedModel
    part: PreTrainedModel
    name: PartName
    layers: nn.ModuleList
    prefix: str
    units: dict[Kind, Units]
    refused: dict[Kind, str] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @cached_property
    def costs(self) -> dict[Kind, int]:
        """Parameters of one unit, by kind."""
        return {kind: units.cost(self.layers[0]) for kind, units in self.units.items()}

    @cached_property
    def layer_size(self) -> int:
        """Parameters of one layer."""
        return sum(p.numel() for p in self.layers[0].parameters())

    @property
    def size(self) -> int:
        """Parameters of all layers: what a share to keep refers to."""
        return self.layer_size * self.depth

    @property
    def config(self) -> Any:
        """The part's configuration."""
        return (
            self.part.config.get_text_config(decoder=True)
            if self.name == "language"
            else self.part.config
        )

    def parameter(self, layer: int, name: str) -> str:
        """A layer's parameter as the whole model names it."""
        return f"{self.prefix}.{layer}.{name}"


def find_stack(model: PreTrainedModel, name: PartName = "language") -> Stack:
    """Find a model's layers and their units.

    Args:
        model: a causal LM, or a multimodal model; float32, so that no gradient vanishes.
        name: the part that is meant.

    Raises:
        UsageError: there is no such part, its layers are not alike, or it has neither kind of unit.
    """
    try:
        if name == "language":
            part, layers = language_part(model)
            run: Callable[[int], None] = lambda rows: _run_texts(part, rows)  # noqa: E731
            attention, ffn = output_projections(
                part, layers, hidden_size(part), lambda: two_texts(part)
            )
        else:
            part = vision_tower(model)
            layers = decoder_layers(part)
            run = lambda rows: _run_images(part, rows)  # noqa: E731
            attention, ffn = output_projections(
                part, layers, int(part.config.hidden_size), lambda: _two_images(part)
            )
    except PartNotFoundError as error:
        raise UsageError(f"{error}: there are no units to prune") from error
    _check_alike(layers, type(part).__name__)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    stack = Stack(model, part, name, layers, prefix, {})
    probe = _Probe(part, layers[0], (attention, ffn), run)
    kind: Kind
    for kind, find, output in (("mlp", _mlp_units, ffn), ("heads", _head_units, attention)):
        try:
            stack.units[kind] = find(probe, output, stack.config)
        except PartNotFoundError as error:
            stack.refused[kind] = str(error)
    if not stack.units:
        raise UsageError(f"{type(part).__name__}: {'; '.join(stack.refused.values())}")
    return stack


def vision_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost model inside another that takes pixels.

    Raises:
        PartNotFoundError: there is none.
    """
    inner = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and module is not model
        and module.main_input_name == "pixel_values"
    ]
    if not inner:
        raise PartNotFoundError(f"{type(model).__name__} has no vision tower")
    return inner[0]


def _check_alike(layers: nn.ModuleList, model: str) -> None:
    first = {name: p.shape for name, p in layers[0].named_parameters()}
    for number, layer in enumerate(layers):
        if {name: p.shape for name, p in layer.named_parameters()} != first:
            raise UsageError(
                f"layer {number} of {model} has other parameters than layer 0: only a model whose layers "
                "are alike can be pruned (of a model pruned per layer, prune its parent)"
            )


def _run_texts(language: PreTrainedModel, rows: int) -> None:
    run_text(language, torch.tensor([TOKENS] * rows))


def _images(tower: PreTrainedModel, rows: int) -> Tensor:
    """The same noise in each row, (rows, C, H, W)."""
    config = tower.config
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=generator)
    return image.to(tower.device, tower.dtype).repeat(rows, 1, 1, 1)


def _run_images(tower: PreTrainedModel, rows: int) -> None:
    tower(pixel_values=_images(tower, rows))


def _two_images(tower: PreTrainedModel) -> None:
    """Run two images that differ in their first patch only."""
    images = _images(tower, 2)
    patch = tower.config.patch_size
    images[1, :, :patch, :patch] += 1
    tower(pixel_values=images)


class _FirstLayerDoneError(Exception):
    """Ends a run once the first layer is through."""


class _Probe:
    """Gradients between the linear maps of the first layer and the inputs of its output projections."""

    def __init__(
        self,
        part: PreTrainedModel,
        layer: nn.Module,
        outputs: tuple[str, str],
        run: Callable[[int], None],
    ) -> None:
        self.part, self.layer, self.outputs, self.run = part, layer, outputs, run
        self.linears = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }

    def width(self, output: str) -> int:
        """Inputs of an output projection."""
        weight = self.linears[output].weight
        return int(weight.shape[0 if isinstance(self.linears[output], Conv1D) else 1])

    def reach(self, output: str, rows: Tensor) -> dict[str, Tensor]:
        """Which outputs of the linear maps reach which inputs of an output projection.

        Args:
            output: the projection.
            rows: (B, d_in) bool, the inputs that each row asks about.

        Returns:
            Per linear map that any of them depends on, (B, d_out) bool.
        """
        leaves: dict[str, Tensor] = {}
        given: list[Tensor] = []

        def leaf(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
                leaves[name] = out.detach().requires_grad_()
                return leaves[name].clone()  # some layers add to a map's output in place

            return hook

        def note(module: nn.Module, args: Any) -> None:
            given.append(args[0])

        def done(module: nn.Module, args: Any, out: Any) -> None:
            raise _FirstLayerDoneError

        with ExitStack() as hooks, torch.enable_grad(), evaluating(self.part):
            for name, module in self.linears.items():
                hooks.enter_context(module.register_forward_hook(leaf(name)))
            hooks.enter_context(self.linears[output].register_forward_pre_hook(note))
            hooks.enter_context(self.layer.register_forward_hook(done))
            with suppress(_FirstLayerDoneError):
                self.run(len(rows))
            asked = rows.to(given[0].device)[:, None].to(given[0].dtype)
            shape = (len(rows), -1, rows.shape[1])
            weights = torch.linspace(1, 2, given[0].numel()).to(given[0]).reshape(shape) * asked
            names = list(leaves)
            found = torch.autograd.grad(
                given[0],
                [leaves[n] for n in names],
                weights.reshape(given[0].shape),
                allow_unused=True,
            )
        return {
            name: (gradient.reshape(len(rows), -1, gradient.shape[-1]) != 0).any(1).cpu()
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None and bool(gradient.any())
        }

    def slices(self, output: str, columns: Tensor, rows: dict[str, Tensor]) -> tuple[Slice, ...]:
        """What units own, from their columns of the output projection and their rows of other maps."""
        found = []
        for name, indices in rows.items():
            module = self.linears[name]
            found.append(Slice(f"{name}.weight", 1 if isinstance(module, Conv1D) else 0, indices))
            if module.bias is not None:
                found.append(Slice(f"{name}.bias", 0, indices))
        axis = 0 if isinstance(self.linears[output], Conv1D) else 1
        return (*found, Slice(f"{output}.weight", axis, columns))


def _mlp_units(probe: _Probe, output: str, config: Any) -> Units:
    count = probe.width(output)
    columns = torch.arange(count)[:, None]
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]] = True
    reached = probe.reach(output, chosen.repeat(4, 1))
    rows: dict[str, Tensor] = {}
    for name, members in reached.items():
        for layout in _layouts(count, members.shape[1]):
            if _only(members.any(0), layout, chosen):
                rows[name] = layout
                break
    mixed = [name for name in reached if name not in rows]
    if mixed or not rows:
        raise PartNotFoundError(
            f"the MLP's units cannot be told apart: {mixed[0] if mixed else 'no linear map'} leads to "
            f"{output} through something that mixes them"
        )
    return Units("mlp", count, probe.slices(output, columns, rows), output)


def _layouts(count: int, rows: int) -> Iterator[Tensor]:
    """How a map's outputs may belong to units: one each, or gate and up fused, side by side or in turn."""
    if rows % count == 0:
        each = rows // count
        yield torch.arange(rows).reshape(each, count).T.contiguous()
        yield torch.arange(rows).reshape(count, each)


def _only(reached: Tensor, layout: Tensor, chosen: Tensor) -> bool:
    """Whether the outputs that reach the chosen units are theirs, and some of each kind are reached."""
    own = torch.zeros_like(reached)
    own[layout[chosen].flatten()] = True
    return bool((reached <= own).all()) and bool(reached[layout[chosen]].any(0).all())


def _head_units(probe: _Probe, output: str, config: Any) -> Units:
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    width = probe.width(output)
    if not heads or width % heads:
        raise PartNotFoundError(f"the {width} inputs of {output} are not those of {heads} heads")
    blocks = torch.arange(width).reshape(heads, -1)  # (heads, head size)
    asked = torch.zeros(heads, width, dtype=torch.bool).scatter_(1, blocks, True)
    reached = probe.reach(output, asked)
    groups = _shared(torch.cat(list(reached.values()), dim=1) if reached else asked)
    if len(groups) < 2:
        raise PartNotFoundError(
            f"all {heads} heads share their keys and values, or a norm over all heads mixes them: none "
            "can be removed alone"
        )
    rows = {}
    for name, members in reached.items():
        owned = [members[group].any(0).nonzero().flatten() for group in groups]
        if len({len(each) for each in owned}) > 1 or sum(map(len, owned)) != members.shape[1]:
            raise PartNotFoundError(f"the outputs of {name} do not belong to heads in equal parts")
        rows[name] = torch.stack(owned)
    columns = torch.stack([blocks[group].flatten() for group in groups])
    return Units("heads", len(groups), probe.slices(output, columns, rows), output, len(groups[0]))


def _shared(members: Tensor) -> list[list[int]]:
    """Heads, rows of (heads, outputs), that share an output, together; in the order of their first heads."""
    groups: list[list[int]] = []
    for head, own in enumerate(members):
        joined = [g for g in groups if bool((members[g].any(0) & own).any())]
        groups = [g for g in groups if g not in joined]
        groups.append(sorted([head, *(each for g in joined for each in g)]))
    return sorted(groups)
