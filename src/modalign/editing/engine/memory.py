"""Estimate the memory an edit needs before it begins: on a CPU, the kernel kills a process that takes too much."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec
from modalign.errors import ModalignError
from modalign.memory import available, readable, resident

# Bytes that a layer keeps per token for the backward pass, in widths and two-byte numbers (Korthikanti
# et al., arXiv 2205.05198, eq. 2, without the attention's part), doubled for a cautious bound.
ACTIVATIONS = 2 * 34
SHARE = 0.5  # share of the free memory that values may take


def bytes_per_edit(spec: ModelSpec, layer: int, requests: Sequence[Request]) -> int:
    """Estimate from above the bytes for one edit's value: activations above ``layer``, kept keys, logits."""
    size = spec.projection(0, "ffn").weight.element_size()
    rows = max(len(request.prompts) for request in requests) + 1
    reach = max(request.reach for request in requests)
    prefix = max(row.lookup for request in requests for row in request.prompts)
    target = max(len(request.target) for request in requests)
    above = spec.depth - layer
    head = spec.language.get_output_embeddings()
    vocabulary = int(head.weight.shape[0])
    activations = rows * reach * above * ACTIVATIONS * spec.width * size // 2
    scores = rows * above * 3 * reach * (prefix + reach) * size * (spec.width // 64 + 1)
    kept = rows * prefix * above * 2 * spec.width * size
    logits = 4 * (rows * target + 1) * vocabulary * max(4, size)
    return activations + scores + kept + logits


def statistics_bytes(spec: ModelSpec, layers: Sequence[int]) -> int:
    """Return the bytes for C0 of all layers and its factors, in float64."""
    return sum(2 * 8 * spec.input_width(layer) ** 2 for layer in layers)


def fitting_batch(spec: ModelSpec, layer: int, requests: Sequence[Request], wanted: int) -> int:
    """Return the largest number of edits, up to ``wanted``, whose values fit the free memory.

    Raises:
        ModalignError: not even one fits; the message gives the figures.
    """
    free = _left(spec.device)
    if free is None or not requests:
        return wanted
    each = bytes_per_edit(spec, layer, requests)
    if each > free:
        raise ModalignError(
            f"one edit's value needs about {readable(each)}, but {readable(free)} are free; use "
            "shorter prompts, fewer contexts, a later layer or a half-precision model"
        )
    return max(1, min(wanted, int(free * SHARE) // max(each, 1)))


def statistics_fit(spec: ModelSpec, layers: Sequence[int]) -> bool:
    """Return whether the key statistics of these layers fit the free memory."""
    free = _left(torch.device("cpu"))
    return free is None or statistics_bytes(spec, layers) <= SHARE * free


def check_statistics(spec: ModelSpec, layers: Sequence[int]) -> None:
    """Refuse key statistics that cannot fit.

    Raises:
        ModalignError: they do not fit; the message gives the figures.
    """
    free = _left(torch.device("cpu"))
    needed = statistics_bytes(spec, layers)
    if free is not None and needed > free:
        raise ModalignError(
            f"the key statistics of {len(layers)} layers and their factors need "
            f"{readable(needed)}, but {readable(free)} are free; edit fewer layers (--set layers=[..])"
        )


def _left(device: torch.device) -> int | None:
    """Return how many bytes are still free on a device."""
    most = available(device)
    if most is None:
        return None
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()
    return max(0, most - used)
