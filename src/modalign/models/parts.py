"""Find the parts of a language model by structure, never by a name in a path.

This file imports only torch: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class PartNotFoundError(ValueError):
    """A part that cannot be found in a model's structure; the message names it."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers: the longest ModuleList of equal modules holding parameters.

    Raises:
        PartNotFoundError: no such list, or two of equal size.
    """
    found: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if len({type(child) for child in module}) != 1:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        found.append((size, name, module))
    found.sort(key=lambda entry: entry[0], reverse=True)
    if not found or found[0][0] == 0:
        raise PartNotFoundError(
            f"{type(model).__name__} has no list of decoder layers (a ModuleList of equal modules)"
        )
    first, *others = found
    if others and others[0][0] == first[0]:
        raise PartNotFoundError(
            f"{type(model).__name__} has two lists that could be its decoder layers: "
            f"{first[1]} and {others[0][1]}"
        )
    return first[2]


def embedding(model: nn.Module) -> nn.Embedding:
    """Return the input embedding, (vocabulary, D)."""
    get: Any = getattr(model, "get_input_embeddings", None)
    module: nn.Embedding | None = get() if get is not None else None
    if module is None or getattr(module, "weight", None) is None:
        raise PartNotFoundError(f"{type(model).__name__} has no input embedding")
    return module


def hidden_size(model: nn.Module) -> int:
    """D, the width of the input embedding."""
    return int(embedding(model).weight.shape[1])
