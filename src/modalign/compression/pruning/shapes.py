"""The class and the configuration that can say a pruned shape, and the cuts of the tensors in the files.

Nothing is assumed of a class: its own configuration gets the new numbers, the model is built without weights,
and the shapes of its layers are compared with those that are kept. Where the class refuses (Llama wants head
counts that divide its width), classes that compute the same from the same tensors are tried: Mistral, then
Granite with factors of 1, which also carries biases everywhere. Per-layer widths have a modelling file of their
own. What no class can say is refused, with every reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from modalign.compression.pruning.evidence import Evidence, columns
from modalign.compression.pruning.plans import Plan
from modalign.compression.pruning.structure import Kind, Stack
from modalign.errors import DataError, UsageError
from modalign.hashing import tensor_hash
from modalign.models.configuration import ModalignConfig
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import PartNotFoundError, decoder_layers
from modalign.models.projections import language_part
from modalign.models.quiet import quietly
from modalign.patches.cuts import Cut
from modalign.patches.fit import locate
from modalign.patches.folder_weights import FolderWeights
from modalign.patches.header import BaseTensor, PatchHeader

MLP_FIELDS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "mlp_dim")
GROUP_FIELDS = ("num_key_value_heads", "num_kv_heads")
CODE = "modeling_pruned.py"
WIDTHS = "layer_widths"

_CODE = '''"""{base} with its own widths in every layer, as `modalign prune --form per_layer` wrote it."""

import copy

from transformers import {base}


class {name}({base}):
    """Every layer is built from the configuration with the fields that `layer_widths` gives it."""

    def __init__(self, config):
        super().__init__(config)
        layers = self.get_submodule("{layers}")
        for number, widths in enumerate(config.layer_widths):
            own = copy.deepcopy(config)
            for key, value in widths.items():
                setattr(own, key, value)
            layers[number] = type(layers[number])(own, number)
        self.post_init()
'''


@dataclass(frozen=True)
class Shape:
    """How a plan is written.

    Attributes:
        cuts: by a tensor's name in the files.
        configuration: the resulting ``config.json``, complete.
        added: tensors that the class then has besides, by name.
        changed: tensors whose values change, by their name in the unpruned files.
        code: of the folder's modelling file, where the class is not one of transformers'.
        carrier: the class.
        notes: what was done to make it fit.
    """

    cuts: dict[str, Cut]
    configuration: dict[str, Any]
    added: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    code: str = ""
    carrier: str = ""
    notes: tuple[str, ...] = ()


class ShapeError(UsageError):
    """A shape that no class can say."""


@dataclass(frozen=True)
class FileNames:
    """How a model's tensors are called in the files of its folder.

    Attributes:
        names: parameter of a layer, as the model names it -> its name in the files.
    """

    names: dict[str, str]

    @classmethod
    def of(cls, stack: Stack, folder: Path) -> FileNames:
        """Find them by name, or by their values.

        Raises:
            DataError: a tensor is missing, or does not hold what the model has.
        """
        weights = FolderWeights(folder)
        own = {
            stack.parameter(layer, name): parameter
            for layer, module in enumerate(stack.layers)
            for name, parameter in module.named_parameters()
        }
        base = {
            name: BaseTensor(sha256=tensor_hash(value.detach()), shape=tuple(value.shape))
            for name, value in own.items()
        }
        header = PatchHeader(name="pruning", method="prune", model=str(folder), base=base)
        return cls(locate(header, weights.shapes, weights.read, str(folder)))

    def prefix(self, stack: Stack, layer: int) -> str:
        """What stands in the files before the name of a parameter inside a layer."""
        name = next(name for name, _ in stack.layers[layer].named_parameters())
        return self.names[stack.parameter(layer, name)].removesuffix(name)

    def renamed(self, stack: Stack, name: str, layer: int, place: int) -> str:
        """A layer's parameter in the files of a model where the layer has another place."""
        prefix = self.prefix(stack, layer)
        head = prefix.removesuffix(f"{layer}.")
        return f"{head}{place}.{name}"


def cuts_of(stack: Stack, plan: Plan, names: FileNames) -> dict[str, Cut]:
    """What a plan keeps of every tensor that does not stay as it is; nothing for a mask."""
    if plan.form == "mask":
        return {}
    cuts = {}
    for layer, module in enumerate(stack.layers):
        for name, parameter in module.named_parameters():
            place = names.names[stack.parameter(layer, name)]
            if layer not in plan.layers:
                cuts[place] = Cut((None,) * parameter.dim(), None)
                continue
            kept = kept_of(stack, plan, layer, name, parameter.dim())
            new = names.renamed(stack, name, layer, plan.layers.index(layer))
            if new != place or any(index is not None for index in kept):
                cuts[place] = Cut(kept, new)
    return cuts


def kept_of(
    stack: Stack, plan: Plan, layer: int, name: str, dims: int
) -> tuple[Tensor | None, ...]:
    """The indices that are kept of a layer's parameter, per axis."""
    kept: list[Tensor | None] = [None] * dims
    for kind, units in stack.units.items():
        chosen = plan.units.get((layer, kind))
        for part in units.slices if chosen is not None else ():
            if part.name == name:
                kept[part.axis] = part.indices[chosen].flatten().sort().values
    return tuple(kept)


@quietly()
def find_shape(
    stack: Stack,
    plan: Plan,
    configuration: Mapping[str, Any],
    names: FileNames,
    evidence: Evidence | None = None,
) -> Shape:
    """Find how a plan can be written.

    Args:
        stack: the part of the unpruned model.
        plan: what is kept.
        configuration: the unpruned folder's ``config.json``.
        names: of the tensors in its files.
        evidence: with the means of removed inputs, to be made up for by biases; None: no compensation.

    Raises:
        ShapeError: no class can say it; the message gives every reason, and what can be done.
    """
    cuts = cuts_of(stack, plan, names)
    if plan.form == "mask":
        return Shape({}, dict(configuration), carrier=_class_name(configuration))
    reasons = []
    for carrier, changed, code in _attempts(stack, plan, configuration, evidence is not None):
        try:
            layers = _layers_of(stack, changed, code)
        except Exception as error:  # a configuration may make transformers raise anything
            reasons.append(f"{carrier}: {_last_line(error)}")
            continue
        wrong, biases = _compare(stack, plan, layers)
        if wrong:
            reasons.append(f"{carrier}: {wrong}")
            continue
        added, replaced = _biases(stack, plan, names, biases, evidence)
        notes = () if carrier == _class_name(configuration) else (f"saved as {carrier}",)
        return Shape(cuts, changed, added, replaced, code, carrier, notes)
    raise ShapeError(_refusal(stack, plan, list(dict.fromkeys(reasons))))


def _last_line(error: Exception) -> str:
    """The reason itself, where transformers puts a heading above it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")


def _refusal(stack: Stack, plan: Plan, reasons: list[str]) -> str:
    can = ["the form mask (zeros, shapes kept)"]
    if any(kind == "heads" for _, kind in plan.units):
        can.insert(0, "--units mlp (heads stay whole)")
    if plan.form == "per_layer":
        can.insert(0, "the form uniform")
    if plan.form != "depth" and stack.name == "language":
        can.append("the form depth")
    return (
        f"{type(stack.part).__name__} cannot be saved with {plan.words(stack)}: {'; '.join(reasons)}. What can "
        f"be saved: {', '.join(can)}"
    )


def _class_name(configuration: Mapping[str, Any]) -> str:
    return str((configuration.get("architectures") or ["?"])[0])


def _attempts(
    stack: Stack, plan: Plan, configuration: Mapping[str, Any], biased: bool
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Classes with configurations that may say the shape, and their code; the nearest first."""
    whole = copy.deepcopy(dict(configuration))
    part = _part_of(whole, stack)
    _cut_lists(stack, plan, part)
    if plan.form == "per_layer":
        yield _per_layer(stack, plan, whole)
        return
    for width in (None, _head_size(stack)):
        again = copy.deepcopy(whole)
        own = _part_of(again, stack)
        own |= _fields(stack, plan.widths(stack, plan.layers[0]), width)
        for carry in (_as_it_is, _as_mistral, _as_granite):
            changed = copy.deepcopy(again)
            name = carry(changed, _part_of(changed, stack), stack, biased)
            if name:
                yield name, changed, ""


def _part_of(configuration: dict[str, Any], stack: Stack) -> dict[str, Any]:
    """The part's own configuration inside that of the whole; changing it changes the whole."""
    if stack.name == "language":
        found = configuration.get("text_config", configuration)
    elif "vision_config" in configuration:
        found = configuration["vision_config"]
    else:
        found = configuration["bridges"]["image"]["encoder"]["config"]
    assert isinstance(found, dict)
    return found


def _head_size(stack: Stack) -> int | None:
    units = stack.units.get("heads")
    return None if units is None else units.slices[-1].indices.shape[1] // units.heads


def _cut_lists(stack: Stack, plan: Plan, part: dict[str, Any]) -> None:
    """Fewer layers: their number, and every list with an entry per layer, written out."""
    if len(plan.layers) == stack.depth:
        return
    names = type(stack.config).attribute_map or {}
    part[names.get("num_hidden_layers", "num_hidden_layers")] = len(plan.layers)
    for key, value in {**stack.config.to_dict(), **part}.items():
        if isinstance(value, list) and len(value) == stack.depth:
            part[key] = [value[layer] for layer in plan.layers]


def _fields(stack: Stack, widths: Mapping[Kind, int], head_size: int | None) -> dict[str, Any]:
    """The fields of a configuration that give these widths."""
    config, found = stack.config, {}
    names = type(config).attribute_map or {}
    if "mlp" in widths and widths["mlp"] != stack.units["mlp"].count:
        count = stack.units["mlp"].count
        known = [f for f in MLP_FIELDS if getattr(config, f, ...) in (count, None)]
        if known:
            found[known[0]] = widths["mlp"]
        elif hasattr(config, "mlp_ratio"):
            found["mlp_ratio"] = (widths["mlp"] + 0.5) / config.hidden_size
    if "heads" in widths and widths["heads"] != stack.units["heads"].count:
        units = stack.units["heads"]
        own = names.get("num_attention_heads", "num_attention_heads")
        found[own] = widths["heads"] * units.heads
        for field_ in GROUP_FIELDS:
            if getattr(config, field_, None) is not None:
                found[field_] = widths["heads"] * getattr(config, field_) // units.count
        if head_size is not None:
            found["head_dim"] = head_size
    return found


def _as_it_is(whole: dict[str, Any], part: dict[str, Any], stack: Stack, biased: bool) -> str:
    if biased:
        part |= {key: True for key in ("attention_bias", "mlp_bias") if hasattr(stack.config, key)}
    return _class_name(whole)


def _as_mistral(whole: dict[str, Any], part: dict[str, Any], stack: Stack, biased: bool) -> str:
    """Llama's computation without biases, with any number of heads."""
    if not _is_llama(stack) or biased:
        return ""
    if stack.config.attention_bias or stack.config.mlp_bias:
        return ""
    for key in ("pretraining_tp", "attention_bias", "mlp_bias"):
        part.pop(key, None)
    part["sliding_window"] = None
    return _renamed(whole, part, "mistral", "MistralForCausalLM")


def _as_granite(whole: dict[str, Any], part: dict[str, Any], stack: Stack, biased: bool) -> str:
    """Llama's computation with any number of heads and biases everywhere: Granite with factors of 1."""
    size = _head_size(stack)
    if not _is_llama(stack) or size is None:
        return ""
    part.pop("pretraining_tp", None)
    part |= {
        "attention_multiplier": size**-0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    if biased:
        part |= {"attention_bias": True, "mlp_bias": True}
    return _renamed(whole, part, "granite", "GraniteForCausalLM")


def _is_llama(stack: Stack) -> bool:
    return stack.name == "language" and stack.config.model_type == "llama"


def _renamed(whole: dict[str, Any], part: dict[str, Any], kind: str, name: str) -> str:
    part["model_type"] = kind
    if part is whole or "architectures" in part:
        part["architectures"] = [name]
    return name if part is whole else f"{_class_name(whole)} around {name}"


def _per_layer(stack: Stack, plan: Plan, whole: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    if not _plain(whole):
        raise ShapeError(
            f"{_class_name(whole)} cannot have its own widths in every layer: only a plain causal language "
            "model can bring its own modelling file. What can be saved: the forms uniform, depth and mask"
        )
    base = type(stack.part).__name__
    name = f"Pruned{base}"
    inside = next(n for n, m in stack.part.named_modules() if m is stack.layers)
    code = _CODE.format(base=base, name=name, layers=inside)
    whole["architectures"] = [name]
    whole["auto_map"] = {"AutoModelForCausalLM": f"{CODE.removesuffix('.py')}.{name}"}
    whole[WIDTHS] = [
        _fields(stack, plan.widths(stack, layer), _head_size(stack)) for layer in plan.layers
    ]
    return name, whole, code


def _plain(configuration: Mapping[str, Any]) -> bool:
    return "text_config" not in configuration


def build(configuration: Mapping[str, Any], code: str = "", device: str = "meta") -> Any:
    """A model of a ``config.json`` with random weights; on the meta device without any."""
    values = dict(configuration)
    if values.get("model_type") == ModalignConfig.model_type:
        kind: Any = ModalignForConditionalGeneration
    elif code:
        space: dict[str, Any] = {}
        exec(compile(code, CODE, "exec"), space)  # our own, see _CODE
        kind = space[_class_name(values)]
    else:
        kind = getattr(transformers, _class_name(values), None)
        if kind is None:
            raise DataError(f"the class {_class_name(values)!r} is unknown to transformers")
    with torch.device(device):
        return kind(kind.config_class.from_dict(values))


def _layers_of(stack: Stack, configuration: Mapping[str, Any], code: str) -> nn.ModuleList:
    """The layers that a configuration gives the part."""
    model = build(configuration, code)
    if stack.name == "language":
        return language_part(model)[1]
    for module in model.modules():
        if type(module) is type(stack.part):
            return decoder_layers(module)
    raise PartNotFoundError(f"{type(model).__name__} has no {type(stack.part).__name__}")


def _compare(stack: Stack, plan: Plan, layers: nn.ModuleList) -> tuple[str, list[str]]:
    """Why layers do not have the shapes that are kept, and the biases that they have besides."""
    if len(layers) != len(plan.layers):
        return f"it has {len(layers)} layers, and {len(plan.layers)} are kept", []
    extra: list[str] = []
    for place, layer in enumerate(plan.layers):
        wanted = {}
        for name, parameter in stack.layers[layer].named_parameters():
            cut = Cut(kept_of(stack, plan, layer, name, parameter.dim()), name)
            wanted[name] = cut.shape(tuple(parameter.shape))
        found = {name: tuple(p.shape) for name, p in layers[place].named_parameters()}
        for name, shape in wanted.items():
            if found.get(name) != shape:
                return f"its {name} is {found.get(name, 'missing')}, and {shape} is kept", []
        extra = [name for name in found if name not in wanted]
        if strange := [name for name in extra if not name.endswith(".bias")]:
            return f"it has a parameter {strange[0]} besides", []
    return "", extra


def _biases(
    stack: Stack,
    plan: Plan,
    names: FileNames,
    extra: list[str],
    evidence: Evidence | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """New biases, and biases that change, by their names in the files: what removed inputs gave on average."""
    added, changed = {}, {}
    for layer in plan.layers:
        own = dict(stack.layers[layer].named_parameters())
        given = compensation(stack, plan, layer, evidence) if evidence else {}
        place = plan.layers.index(layer)
        dtype = next(iter(own.values())).dtype
        for name in extra:
            weight = own[name.removesuffix("bias") + "weight"]
            cut = Cut(kept_of(stack, plan, layer, name.removesuffix("bias") + "weight", 2), "")
            width = cut.shape(tuple(weight.shape))[0]
            value = given.pop(name, torch.zeros(width))
            added[names.renamed(stack, name, layer, place)] = value.to(dtype)
        for name, value in given.items():
            if name not in own:
                raise ShapeError(
                    f"{type(stack.part).__name__} has no {name} to carry what removed inputs gave on average: "
                    "use --no-compensate"
                )
            changed[names.names[stack.parameter(layer, name)]] = own[name].detach() + value.to(
                own[name]
            )
    return added, changed


def compensation(stack: Stack, plan: Plan, layer: int, evidence: Evidence) -> dict[str, Tensor]:
    """b = W (mean of removed inputs), per output projection that lost inputs: its bias's name -> (D,)."""
    found = {}
    for kind, units in stack.units.items():
        kept = plan.units.get((layer, kind))
        if kept is None:
            continue
        gone = torch.ones(units.count, dtype=torch.bool)
        gone[kept] = False
        means = evidence.inputs[layer, kind].mean[units.slices[-1].indices]  # (U, k)
        W = columns(stack.layers[layer], units).float().cpu()  # (U, D, k)
        found[f"{units.output}.bias"] = torch.einsum("udk,uk->d", W[gone], means[gone])
    return found
