"""Where a language model can be edited: its layers and their output projections, found by running it.

Names of modules say nothing here. Two inputs that differ in their first token only are run through the
model; in the first decoder layer, the attention's output projection is the first linear map to the
hidden size whose input at the second token differs (only attention carries the difference there), and
the feed-forward network's (FFN's) output projection is the last linear map to the hidden size that
runs in the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modalign.errors import UsageError
from modalign.models.parts import PartNotFoundError, decoder_layers, embedding

Site = Literal["block", "attention", "ffn"]


class SpecError(UsageError):
    """A model without the parts that editing needs; the message names the part."""


@dataclass(frozen=True)
class ModelSpec:
    """The parts of a language model that editors read and write.

    Attributes:
        model: what the user gave, a multimodal model for one.
        language: the part with decoder layers and head that takes ``inputs_embeds``.
        layers: its decoder layers.
        attention: name of the attention's output projection inside a layer.
        ffn: name of the FFN's output projection inside a layer.
        width: D, the hidden size.
        parallel: the FFN does not see the attention's output of its own layer (GPT-J, GPT-NeoX).
        additive: a layer's output is input + attention + FFN; False where norms stand between
            (Gemma 2 and 3), so that a vector added to a projection is scaled before it counts.
    """

    model: PreTrainedModel
    language: PreTrainedModel
    layers: nn.ModuleList
    attention: str
    ffn: str
    width: int
    parallel: bool
    additive: bool

    @classmethod
    def detect(cls, model: PreTrainedModel) -> ModelSpec:
        """Find the parts by running two tokens through the model.

        Raises:
            SpecError: a part is missing (a mixture of experts has no single FFN projection).
        """
        language, layers = _language_part(model)
        width = int(embedding(language).weight.shape[1])
        observed = _observe(language, layers, width)
        attention, ffn = _projections(layers[0], observed, type(model).__name__)
        for number, layer in enumerate(layers):
            names = dict(layer.named_modules())
            for name in (attention, ffn):
                if not isinstance(names.get(name), nn.Linear | Conv1D):
                    raise SpecError(f"layer {number} of {type(model).__name__} has no {name}")
        spec = cls(model, language, layers, attention, ffn, width, False, True)
        parallel, additive = _structure(spec)
        return cls(model, language, layers, attention, ffn, width, parallel, additive)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the input embedding lies."""
        return embedding(self.language).weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers' weights."""
        return self.projection(0, "ffn").weight.dtype

    @property
    def exact(self) -> torch.dtype:
        """What values and losses are computed in: float64 for a float64 model, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def projection(self, layer: int, site: Site) -> nn.Linear | Conv1D:
        """The output projection of a layer's attention or FFN."""
        module = self.layers[layer].get_submodule(self.ffn if site == "ffn" else self.attention)
        assert isinstance(module, nn.Linear | Conv1D)
        return module

    def module(self, layer: int, site: Site) -> nn.Module:
        """What ``site`` names in a layer: the layer itself for ``block``, else a projection."""
        return self.layers[layer] if site == "block" else self.projection(layer, site)

    def weight_name(self, layer: int) -> str:
        """The FFN projection's weight as the whole model names it."""
        wanted = self.projection(layer, "ffn").weight
        for name, parameter in self.model.named_parameters():
            if parameter is wanted:
                return name
        raise SpecError(f"the FFN projection of layer {layer} is not a parameter of the model")

    def input_width(self, layer: int) -> int:
        """d_in of the FFN's output projection: the length of a key."""
        weight = self.projection(layer, "ffn").weight
        return int(weight.shape[0] if self.transposed(layer) else weight.shape[1])

    def transposed(self, layer: int) -> bool:
        """Whether the FFN projection stores its weight as (d_in, d_out), as Conv1D does."""
        return isinstance(self.projection(layer, "ffn"), Conv1D)

    @property
    def window(self) -> int | None:
        """The sliding attention window, where any layer has one."""
        config = self.language.config.get_text_config(decoder=True)
        if getattr(config, "use_sliding_window", True) is False:
            return None
        return getattr(config, "sliding_window", None)

    def describe(self) -> str:
        """One line for people."""
        first = self.projection(0, "ffn").weight
        blocks = "parallel" if self.parallel else "sequential"
        return (
            f"{type(self.language).__name__}: {self.depth} {blocks} layers of width {self.width}, "
            f"attention {self.attention}, FFN {self.ffn} {tuple(first.shape)}"
            + ("" if self.additive else ", with norms after the projections")
        )


def _language_part(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.ModuleList]:
    """The innermost model with an output head, and its decoder layers."""
    chosen: PreTrainedModel | None = None
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            chosen = module  # parents come before children
    if chosen is None:
        raise SpecError(f"{type(model).__name__} has no output head; editing needs a causal LM")
    decoder = chosen.get_decoder() if hasattr(chosen, "get_decoder") else None
    try:
        return chosen, decoder_layers(decoder if decoder is not None else chosen)
    except PartNotFoundError as error:
        raise SpecError(str(error)) from error


@dataclass(frozen=True)
class _Call:
    name: str
    out_features: int
    inputs: Tensor  # (2, 2, d_in)


def _observe(language: PreTrainedModel, layers: nn.ModuleList, width: int) -> list[_Call]:
    """The linear maps that run in the first layer, in order, with their inputs."""
    calls: list[_Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            calls.append(_Call(name, output.shape[-1], args[0].detach().reshape(2, 2, -1)))

        return hook

    with ExitStack() as hooks, torch.no_grad(), evaluating(language):
        for name, module in layers[0].named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                hooks.enter_context(module.register_forward_hook(note(name)))
        run_text(language, torch.tensor([[5, 7], [6, 7]]))
    return [call for call in calls if call.out_features == width]


def _projections(layer: nn.Module, calls: list[_Call], model: str) -> tuple[str, str]:
    mixing = [c.name for c in calls if not torch.equal(c.inputs[0, 1], c.inputs[1, 1])]
    if not mixing:
        raise SpecError(f"{model}: no linear map after attention leads to the hidden size")
    attention, ffn = mixing[0], calls[-1].name
    if attention == ffn:
        raise SpecError(
            f"{model}: the layer {type(layer).__name__} has no single FFN output projection "
            "(a mixture of experts?), so closed-form editing has nothing to write to"
        )
    return attention, ffn


def _structure(spec: ModelSpec) -> tuple[bool, bool]:
    """Whether the FFN ignores its layer's attention output, and whether a layer adds up."""
    seen: dict[str, Tensor] = {}
    bump: list[float] = [0.0]

    def attention_hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen["attention"] = output + bump[0] * torch.linspace(1, 2, output.shape[-1]).to(output)
        return seen["attention"]

    def ffn_hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["ffn"] = output.reshape(seen["attention"].shape)

    def layer_hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen["in"] = args[0] if args else kwargs["hidden_states"]
        seen["out"] = hidden_of(output)

    ids = torch.tensor([[5, 7]])
    with ExitStack() as hooks, torch.no_grad(), evaluating(spec.language):
        for handle in (
            spec.projection(0, "attention").register_forward_hook(attention_hook),
            spec.projection(0, "ffn").register_forward_hook(ffn_hook),
            spec.layers[0].register_forward_hook(layer_hook, with_kwargs=True),
        ):
            hooks.enter_context(handle)
        run_text(spec.language, ids)
        before = dict(seen)
        bump[0] = 1.0
        run_text(spec.language, ids)
    total = before["in"] + before["attention"] + before["ffn"]
    scale = before["out"].abs().max()
    additive = bool((total - before["out"]).abs().max() <= 0.02 * scale)
    return torch.equal(before["ffn"], seen["ffn"]), additive


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; each module's former mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a layer's output: some layers return tuples, others tensors."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, Tensor)
    return hidden


def run_text(language: PreTrainedModel, ids: Tensor, **inputs: Any) -> Any:
    """Run token ids with an explicit mask, without a cache."""
    device = embedding(language).weight.device
    inputs.setdefault("attention_mask", torch.ones_like(ids, device=device))
    return language(input_ids=ids.to(device), use_cache=False, **accepted(language, inputs))


def accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Of these inputs, those that the model's ``forward`` takes (alibi models take no positions)."""
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" in inputs and "position_ids" not in parameters:
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not takes_any or "alibi" in repr(type(model)).lower():
            return {name: value for name, value in inputs.items() if name != "position_ids"}
    return inputs
