"""One way to call a causal model: with ids, an explicit mask and explicit positions, and with the head
computed only where it is needed.

Anything that is called like a transformers causal LM will do: a plain model, a model that also
takes images, or a view of one with a patch applied. Nothing here changes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modalign.editing.engine.tokens import Rows
from modalign.models.caches import CACHE


@contextmanager
def judging(model: Any) -> Iterator[None]:
    """Turn dropout and gradients off; each module's mode is restored afterwards."""
    modules = list(model.modules()) if hasattr(model, "modules") else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: Any) -> torch.device:
    """Return the device on which the model expects its ids."""
    head = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(head, "weight", None)
    if weight is None:
        weight = next(iter(model.parameters()))
    device: torch.device = weight.device
    return device


def vocabulary_of(model: Any) -> int:
    """Return the width of the logits, for estimates of memory."""
    weight = getattr(_head(model), "weight", None)
    return int(weight.shape[0]) if weight is not None else 50_000


def call(model: Any, rows: Rows, extras: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """Run rows of ids.

    Args:
        model: anything called like a transformers causal LM.
        rows: right- or left-padded ids with their mask, on the model's device.
        extras: further inputs (pixels); a value of None takes an input away.
        settings: ``use_cache`` and the like, passed on if ``forward`` takes them.
    """
    inputs = {"input_ids": rows.run, "attention_mask": rows.mask, "position_ids": rows.positions}
    inputs = {"use_cache": False} | inputs | settings | dict(extras or {})
    return model(
        **{name: value for name, value in _taken(model, inputs).items() if value is not None}
    )


def logits_at(
    model: Any,
    rows: Rows,
    where: tuple[Tensor, Tensor],
    extras: Mapping[str, Any] | None = None,
    **settings: Any,
) -> tuple[Tensor, Any]:
    """Return logits at chosen places, (P, V), and the model's output; the head is computed nowhere else.

    Args:
        model: anything called like a transformers causal LM.
        rows: the ids.
        where: (P,) row numbers and (P,) positions in them.
        extras: further inputs.
        settings: as for :func:`call`.
    """
    with _head_at(_head(model), where) as narrowed:
        output = call(model, rows, extras, **settings)
    if narrowed:
        return output.logits.reshape(len(where[0]), -1), output
    return output.logits[where], output  # no head was found, or the model bypassed it


@contextmanager
def _head_at(head: Any, where: tuple[Tensor, Tensor]) -> Iterator[list[bool]]:
    """Let the output projection see the hidden states at some places only; yields whether it did."""
    narrowed: list[bool] = []
    if head is None:
        yield narrowed
        return

    def gather(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        narrowed.append(True)
        return (args[0][where].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield narrowed
    finally:
        handle.remove()


def _head(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _taken(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs that ``forward`` names (ALiBi models name no positions), and the cache if
    ``forward`` passes further keywords on.

    A ``forward`` that does not even name ``input_ids`` passes everything on, so it gets everything.
    """
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    if "input_ids" not in parameters:
        return inputs
    optional = {"position_ids", "use_cache", CACHE} - set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        optional -= {"use_cache", CACHE}
    return {name: value for name, value in inputs.items() if name not in optional}
