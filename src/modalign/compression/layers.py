"""Decoder layers of a language model: which to keep, and the model with those alone.

Block influence is 1 minus the cosine between a layer's input and output, mean over positions (ShortGPT,
arXiv 2403.03853).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.errors import UsageError
from modalign.models.parts import decoder_layers

LayerRule = Literal["first", "every_other", "influence"]


def chosen_layers(
    count: int, depth: int, rule: LayerRule, influence: Callable[[], Sequence[float]]
) -> list[int]:
    """Return the layers to keep, in order.

    Args:
        count: how many.
        depth: of the model.
        rule: the first ones; evenly spaced ones from the first on; or those of the largest influence.
        influence: returns every layer's; called where the rule needs it.

    Raises:
        UsageError: the model has fewer, or none would be kept.
    """
    if not 0 < count <= depth:
        raise UsageError(f"{count} layers cannot be kept: the model has {depth}")
    if rule == "first":
        return list(range(count))
    if rule == "every_other":
        return [place * depth // count for place in range(count)]
    scores = influence()
    return sorted(sorted(range(depth), key=lambda layer: (-scores[layer], layer))[:count])


@contextmanager
def watched_cosines(
    layers: Iterable[nn.Module], rows: Callable[[Tensor], Tensor]
) -> Iterator[Callable[[], list[float]]]:
    """Watch layers at work; yields what tells, per layer, the mean cosine of its input and output so far.

    Args:
        layers: decoder layers.
        rows: (B, T, D) states -> (R, D) of the positions to read.
    """
    sums: list[list[float]] = []

    def comparing(total: list[float]) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, keywords: Any, output: Any) -> None:
            entering = given[0] if given else keywords["hidden_states"]
            leaving = output if isinstance(output, Tensor) else output[0]
            found = functional.cosine_similarity(
                rows(entering).float(), rows(leaving).float(), dim=-1
            )
            total[0] += float(found.double().sum())
            total[1] += len(found)

        return hook

    with ExitStack() as stack:
        for layer in layers:
            sums.append([0.0, 0])
            handle = layer.register_forward_hook(comparing(sums[-1]), with_kwargs=True)
            stack.callback(handle.remove)
        yield lambda: [total / max(read, 1) for total, read in sums]


@torch.no_grad()
def block_influence(
    model: nn.Module, call: Callable[[Any], Any], batches: Iterable[tuple[Any, Tensor]]
) -> list[float]:
    """Return every decoder layer's block influence.

    Args:
        model: the language model.
        call: runs it on a batch.
        batches: batches with their positions to read, (B, T) bool.
    """
    read: list[Tensor] = []
    with watched_cosines(decoder_layers(model), lambda states: states[read[-1]]) as cosines:
        for batch, places in batches:
            read.append(places)
            call(batch)
    return [1 - cosine for cosine in cosines()]


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Cut a language model to some of its decoder layers, in place, its configuration included.

    Args:
        model: a causal language model.
        kept: layers to keep, in order.
    """
    layers = decoder_layers(model)
    depth = len(layers)
    for layer in sorted(set(range(depth)) - set(kept), reverse=True):
        del layers[layer]
    for number, each in enumerate(layers):
        module: Any
        for module in each.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # its place in the cache
    config = model.config
    config.num_hidden_layers = len(kept)
    for name, value in vars(config).items():  # such as layer_types
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[layer] for layer in kept])
