"""Find where a language model can be edited, its layers and their output projections, by running it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modalign.errors import UsageError
from modalign.models.parts import PartNotFoundError, embedding, hidden_size
from modalign.models.projections import (
    evaluating,
    hidden_of,
    language_part,
    output_projections,
    run_text,
    two_texts,
)

Site = Literal["block", "attention", "ffn"]


class SpecError(UsageError):
    """A model without the parts that editing needs; the message names the part."""


@dataclass(frozen=True)
class ModelSpec:
    """The parts of a language model that editors read and write.

    Attributes:
        model: what the user gave, possibly a multimodal model.
        language: the part with decoder layers and head that takes ``inputs_embeds``.
        layers: its decoder layers.
        attention: name of the attention's output projection inside a layer.
        ffn: name of the FFN's output projection inside a layer.
        width: D, the hidden size.
        parallel: whether the FFN does not see its own layer's attention output (GPT-J, GPT-NeoX).
        additive: whether a layer's output is input + attention + FFN; False where norms come between
            (Gemma 2 and 3), which scale a vector added to a projection.
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
        try:
            language, layers = language_part(model)
            width = hidden_size(language)
            attention, ffn = output_projections(
                language, layers, width, lambda: two_texts(language)
            )
        except PartNotFoundError as error:
            raise SpecError(f"{error}; closed-form editing has nothing to write to") from error
        spec = cls(model, language, layers, attention, ffn, width, False, True)
        parallel, additive = _structure(spec)
        return cls(model, language, layers, attention, ffn, width, parallel, additive)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """The device of the input embedding."""
        return embedding(self.language).weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layers' weights."""
        return self.projection(0, "ffn").weight.dtype

    @property
    def exact(self) -> torch.dtype:
        """The dtype that values and losses are computed in: float64 for a float64 model, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def projection(self, layer: int, site: Site) -> nn.Linear | Conv1D:
        """Return the output projection of a layer's attention or FFN."""
        module = self.layers[layer].get_submodule(self.ffn if site == "ffn" else self.attention)
        assert isinstance(module, nn.Linear | Conv1D)
        return module

    def module(self, layer: int, site: Site) -> nn.Module:
        """Return the module that ``site`` names: the layer itself for ``block``, else a projection."""
        return self.layers[layer] if site == "block" else self.projection(layer, site)

    def weight_name(self, layer: int) -> str:
        """Return the whole model's name for the FFN projection's weight."""
        wanted = self.projection(layer, "ffn").weight
        for name, parameter in self.model.named_parameters():
            if parameter is wanted:
                return name
        raise SpecError(f"the FFN projection of layer {layer} is not a parameter of the model")

    def input_width(self, layer: int) -> int:
        """Return d_in of the FFN's output projection: the length of a key."""
        weight = self.projection(layer, "ffn").weight
        return int(weight.shape[0] if self.transposed(layer) else weight.shape[1])

    def transposed(self, layer: int) -> bool:
        """Return whether the FFN projection stores its weight as (d_in, d_out), as Conv1D does."""
        return isinstance(self.projection(layer, "ffn"), Conv1D)

    @property
    def window(self) -> int | None:
        """The sliding attention window, if any layer has one."""
        config = self.language.config.get_text_config(decoder=True)
        if getattr(config, "use_sliding_window", True) is False:
            return None
        return getattr(config, "sliding_window", None)

    def describe(self) -> str:
        """Describe the model in one line."""
        first = self.projection(0, "ffn").weight
        blocks = "parallel" if self.parallel else "sequential"
        return (
            f"{type(self.language).__name__}: {self.depth} {blocks} layers of width {self.width}, "
            f"attention {self.attention}, FFN {self.ffn} {tuple(first.shape)}"
            + ("" if self.additive else ", with norms after the projections")
        )


def _structure(spec: ModelSpec) -> tuple[bool, bool]:
    """Return whether the FFN ignores its layer's attention output, and whether the layer is a sum of its parts."""
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
