"""Check whether a patch fits a model: its tensors by hash, the patches below it, the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from modalign.errors import DataError, UsageError
from modalign.hashing import tensor_hash, tokenizer_hash
from modalign.patches.header import SHOWN, BaseTensor, PatchContent, PatchHeader, label, patch_hash


def locate(
    header: PatchHeader,
    shapes: Mapping[str, tuple[int, ...]],
    unpatched: Callable[[str], Tensor],
    where: str,
) -> dict[str, str]:
    """Find a patch's tensors in a model and verify that they hold what the patch expects.

    A tensor is looked for by name or, if the model has no such name, by its values alone, since the same
    language model has other names inside a multimodal one, and in a file.

    Args:
        header: of the patch.
        shapes: of the model's tensors, by name.
        unpatched: gives a tensor's values without any patch.
        where: the model, for messages.

    Returns:
        Name in the patch -> name in the model.

    Raises:
        DataError: a tensor is missing, ambiguous, or has other values.
    """
    hashes: dict[str, str] = {}

    def hash_of(name: str) -> str:
        if name not in hashes:
            hashes[name] = tensor_hash(unpatched(name))
        return hashes[name]

    found = {}
    for name, base in header.base.items():
        candidates = [each for each, shape in shapes.items() if shape == base.shape]
        fitting: list[str] = []
        for group in _by_likeness(name, candidates):
            fitting = [each for each in group if hash_of(each) == base.sha256]
            if fitting or name in group:
                break  # a tensor with exactly this name is the one meant
        if len(fitting) > 1:
            raise DataError(
                f"{where} holds the values of {name} more than once ({', '.join(fitting[:3])}), none "
                f"under this name, so it is unclear which of them {header.name!r} is for"
            )
        if not fitting:
            raise DataError(_misfit(header, name, base, shapes, unpatched, where))
        found[name] = fitting[0]
    return found


def _by_likeness(name: str, candidates: Sequence[str]) -> list[list[str]]:
    """Group names, those that share the longest ending with ``name`` first."""
    groups: dict[int, list[str]] = {}
    own = name.split(".")[::-1]
    for candidate in candidates:
        other = candidate.split(".")[::-1]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, other)))  # noqa: B905
        groups.setdefault(len(own) + 1 if candidate == name else shared, []).append(candidate)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _misfit(
    header: PatchHeader,
    name: str,
    base: BaseTensor,
    shapes: Mapping[str, tuple[int, ...]],
    unpatched: Callable[[str], Tensor],
    where: str,
) -> str:
    """Say why a tensor does not fit."""
    begin = f"the patch {header.name!r} was made for another model ({header.model}): "
    if name in shapes and shapes[name] != base.shape:
        return (
            f"{begin}{name} of {where} has the shape {shapes[name]}, the patch expects {base.shape}"
        )
    if name not in shapes:
        return (
            f"{begin}{where} has no tensor {name}, and none of shape {base.shape} under another name "
            f"whose hash is {base.sha256[:SHOWN]}"
        )
    values = unpatched(name)
    found = tensor_hash(values)
    for dtype in (torch.bfloat16, torch.float16):
        if tensor_hash(values.to(dtype)) == base.sha256:
            kept = str(dtype).removeprefix("torch.")
            return (
                f"the patch {header.name!r} was computed on this model rounded to {kept}, but {name} "
                f"of {where} is {str(values.dtype).removeprefix('torch.')}: load the model in {kept}, "
                "or compute the patch on the weights as they are stored"
            )
    return (
        f"{begin}{name} of {where} has the hash {found[:SHOWN]}, the patch expects "
        f"{base.sha256[:SHOWN]}. If the model was loaded in a narrower type than it is stored in, "
        "load it as stored"
    )


def check_order(
    patch: PatchContent, sha256: str, below: Sequence[tuple[str, str]], where: str
) -> None:
    """Refuse a patch that is applied already, or lacks the patches it was computed on top of.

    Args:
        patch: the patch to put on top.
        sha256: its hash.
        below: name and hash of the patches applied, lowest first.
        where: the model, for messages.
    """
    hashes = [each for _, each in below]
    if sha256 in hashes:
        raise DataError(f"the patch {patch.header.name!r} ({sha256[:SHOWN]}) is in {where} already")
    missing = [each for each in patch.header.after if each not in hashes]
    if missing:
        raise DataError(
            f"the patch {patch.header.name!r} was computed on top of "
            f"{', '.join(each[:SHOWN] for each in missing)}, which is not in {where}; apply that first"
        )
    places = [hashes.index(each) for each in patch.header.after]
    if places != sorted(places):
        raise DataError(
            f"the patch {patch.header.name!r} was computed on top of other patches in another order "
            f"than they are in {where}; it expects {', '.join(e[:SHOWN] for e in patch.header.after)}"
        )


def chosen(wanted: PatchContent | str, stack: Sequence[tuple[str, str]], where: str) -> int:
    """Find the position of a patch among those applied.

    Args:
        wanted: the patch, its name, or at least the first four digits of its hash.
        stack: name and hash of the patches applied.
        where: the model, for messages.

    Raises:
        UsageError: no patch matches, or several do.
    """
    digits = patch_hash(wanted) if isinstance(wanted, PatchContent) else wanted
    places = [i for i, (name, _) in enumerate(stack) if name == wanted]
    if not places and len(digits) >= 4:
        places = [i for i, (_, sha256) in enumerate(stack) if sha256.startswith(digits)]
    if len(places) != 1:
        shown = label(wanted) if isinstance(wanted, PatchContent) else repr(wanted)
        problem = "matches several patches" if places else "is not applied"
        names = ", ".join(f"{name} ({sha256[:SHOWN]})" for name, sha256 in stack) or "none"
        raise UsageError(f"the patch {shown} {problem}; applied to {where}: {names}")
    return places[0]


def check_removable(
    gone: Sequence[str], present: Sequence[tuple[PatchContent, str]], where: str
) -> None:
    """Refuse to remove patches from under others that were computed on top of them.

    Args:
        gone: hashes of those to be removed.
        present: every patch with its hash, lowest first.
        where: the model, for messages.
    """
    for patch, sha256 in present:
        resting = [each for each in patch.header.after if each in gone]
        if sha256 not in gone and resting:
            names = {each: other.header.name for other, each in present}
            raise DataError(
                f"{names[resting[0]]!r} ({resting[0][:SHOWN]}) cannot be removed from {where} alone: "
                f"{patch.header.name!r} ({sha256[:SHOWN]}) was computed on top of it; remove both"
            )


def check_tokenizer(patch: PatchContent, tokenizer: Any) -> None:
    """Refuse a tokenizer that a patch was not computed for.

    Raises:
        DataError: the patch names a different tokenizer.
    """
    expected = patch.header.tokenizer
    if expected is None:
        return
    found = tokenizer_hash(tokenizer)
    if found != expected:
        raise DataError(
            f"the patch {patch.header.name!r} was computed for another tokenizer (hash "
            f"{expected[:SHOWN]}, this one has {found[:SHOWN]}): its edits were made for other token ids. "
            f"Use it with the tokenizer of {patch.header.model}, or compute it again for this one"
        )
