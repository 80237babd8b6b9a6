"""The language part of a model and the output projections of its layers, found by running it.

Names of modules say nothing here. Two inputs that differ at one position are run; in the first layer, the
attention's output projection is the first linear map to the hidden size whose input differs at other
positions, too (only attention carries the difference there), and the feed-forward network's (FFN's) output
projection is the last linear map to the hidden size that runs in the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from modalign.models.parts import PartNotFoundError, decoder_layers, embedding


def language_part(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.ModuleList]:
    """The innermost model with an output head, and its decoder layers.

    Raises:
        PartNotFoundError: it has no head, or no list of layers.
    """
    chosen: PreTrainedModel | None = None
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            chosen = module  # parents come before children
    if chosen is None:
        raise PartNotFoundError(f"{type(model).__name__} has no output head, as a causal LM has")
    decoder = chosen.get_decoder() if hasattr(chosen, "get_decoder") else None
    return chosen, decoder_layers(decoder if decoder is not None else chosen)


def two_texts(language: PreTrainedModel) -> None:
    """Run two texts that differ in their first token only."""
    run_text(language, torch.tensor([[5, 7], [6, 7]]))


def output_projections(
    model: PreTrainedModel, layers: nn.ModuleList, width: int, run: Callable[[], None]
) -> tuple[str, str]:
    """Names, inside a layer, of the output projections of attention and FFN.

    Args:
        model: in which they are.
        layers: its layers, alike.
        width: the hidden size.
        run: runs the layers on two inputs that differ at one position.

    Raises:
        PartNotFoundError: a projection is missing (a mixture of experts has no single FFN projection).
    """
    name, layer = type(model).__name__, layers[0]
    calls = _observe(model, layer, width, run)
    mixing = [each for each, inputs in calls if _places(inputs) > 1]
    if not mixing:
        raise PartNotFoundError(f"{name}: no linear map after attention leads to the hidden size")
    attention, ffn = mixing[0], calls[-1][0]
    if attention == ffn:
        raise PartNotFoundError(
            f"{name}: the layer {type(layer).__name__} has no single FFN output projection (a mixture "
            "of experts?)"
        )
    for number, each in enumerate(layers):
        inner = dict(each.named_modules())
        for part in (attention, ffn):
            if not isinstance(inner.get(part), nn.Linear | Conv1D):
                raise PartNotFoundError(f"layer {number} of {name} has no {part}")
    return attention, ffn


def _places(inputs: Tensor) -> int:
    """At how many positions the two inputs of a linear map, (2, T, d_in), differ."""
    return int((inputs[0] != inputs[1]).any(-1).sum())


def _observe(
    model: nn.Module, layer: nn.Module, width: int, run: Callable[[], None]
) -> list[tuple[str, Tensor]]:
    """The linear maps to the hidden size that run in a layer, in order, with their inputs (2, T, d_in)."""
    calls: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if output.shape[-1] == width:
                calls.append((name, args[0].detach().reshape(2, -1, args[0].shape[-1])))

        return hook

    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                hooks.enter_context(module.register_forward_hook(note(name)))
        run()
    return calls


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
