"""From a target to the number of parameters that the layers may keep: by share, by memory, by measured time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from modalign.compression.pruning.config import KEEP
from modalign.compression.pruning.shapes import build
from modalign.compression.pruning.speed import measure
from modalign.compression.pruning.workshop import Candidate, Request, Workshop
from modalign.errors import UsageError
from modalign.memory import bytes_of, readable
from modalign.models.projections import language_part
from modalign.patches.folder_weights import FolderWeights

STEPS = 32  # shares of parameters that the search for a time distinguishes
ROUNDS = 5  # of each time that it measures


def weights_bytes(folder: Path) -> int:
    """Size of a folder's weight files."""
    return sum((folder / name).stat().st_size for name in FolderWeights(folder).files)


def check_target(workshop: Workshop) -> None:
    """Refuse targets that make no sense, before any pass.

    Raises:
        UsageError: with the reason.
    """
    config = workshop.config
    for name, value in (("keep", config.keep), ("latency", config.latency)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"--{name} is {value}: give a share above 0 and below 1")
    if config.form == "mask" and (config.latency is not None or config.memory is not None):
        raise UsageError(
            "the form mask only writes zeros, which take neither less memory nor less time: give --keep"
        )
    if config.latency is not None and config.part == "vision":
        raise UsageError("--latency is about the next token, which the vision tower has no part in")
    if config.latency is None:
        fixed_size(workshop)


def fixed_size(workshop: Workshop) -> int:
    """The parameters that the layers may have by a share or by memory.

    Raises:
        UsageError: the weights fit already, or what is not in the layers alone is too large.
    """
    config, stack = workshop.config, workshop.stack
    if config.memory is None:
        return int((KEEP if config.keep is None else config.keep) * stack.size)
    have, wanted = weights_bytes(workshop.source), bytes_of(config.memory, "--memory")
    if have <= wanted:
        raise UsageError(
            f"--memory {config.memory}: the weights take {readable(have)}, so they fit already"
        )
    width = torch.empty((), dtype=workshop.opened.stored).element_size()
    size = stack.size - math.ceil((have - wanted) / width)
    if size < 1:
        rest = readable(have - stack.size * width)
        raise UsageError(
            f"--memory {config.memory}: the target is out of reach: what is not in the layers takes {rest}"
        )
    return size


def size_for(workshop: Workshop, request: Request, seed: int) -> int:
    """The parameters that the layers may have to meet the target, for one way of pruning.

    Raises:
        UsageError: the target is out of reach.
    """
    target = workshop.config.latency
    if target is None:
        return fixed_size(workshop)
    sizes = _sizes(workshop, request)
    low, high, best = 0, len(sizes) - 1, -1
    seen: dict[int, float] = {}
    while low <= high:  # the largest size that is fast enough
        middle = (low + high) // 2
        seen[middle] = _share_of_time(workshop, request, sizes[middle], seed)
        if seen[middle] <= target:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    if best < 0:
        raise UsageError(
            f"--latency {target:g}: the target is out of reach: by {request.name}, with "
            f"{sizes[0] / workshop.stack.size:.0%} of the layers' parameters, the next token takes "
            f"{min(seen.values()):.2f} of the parent's time"
        )
    workshop.notes.append(
        f"{request.name}: with {sizes[best] / workshop.stack.size:.0%} of the layers' parameters the next token "
        f"took {seen[best]:.2f} of the parent's time in the search ({len(seen)} sizes, {ROUNDS} rounds each)."
    )
    return sizes[best]


def _sizes(workshop: Workshop, request: Request) -> Sequence[int]:
    """Sizes to try, ascending: layers one by one, or shares of what can go."""
    stack = workshop.stack
    if request.form == "depth":
        return [stack.layer_size * count for count in range(1, stack.depth)]
    kinds = request.kinds or tuple(stack.units)
    least = stack.size - stack.depth * sum(
        (stack.units[kind].count - 1) * stack.costs[kind] for kind in kinds if kind in stack.units
    )
    return [least + (stack.size - 1 - least) * step // STEPS for step in range(STEPS + 1)]


def _share_of_time(workshop: Workshop, request: Request, size: int, seed: int) -> float:
    """What the next token takes at a size, as a share of the parent's time."""
    candidate = workshop.candidate(request, size, seed=seed)
    workshop.progress(f"timing {request.name}", 0, 1)
    parent = workshop.opened.model.language_model
    found = measure(
        {"parent": parent, "pruned": random_model(candidate, parent)}, rounds=ROUNDS, batches=(1,)
    )["pruned"][0]
    workshop.progress(f"timing {request.name}", 1, 1)
    assert found.next_ratio is not None
    return found.next_ratio.value


def random_model(candidate: Candidate, like: torch.nn.Module) -> torch.nn.Module:
    """The language part of a candidate with random weights: times do not depend on values."""
    whole = build(candidate.shape.configuration, candidate.shape.code, "cpu")
    first = next(like.parameters())
    return language_part(whole)[0].to(first.device, first.dtype).eval()
