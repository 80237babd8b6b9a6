"""Make a patch of what was done to a model: the difference of two folders of the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from modalign.errors import DataError, UsageError
from modalign.hashing import tensor_hash
from modalign.patches.architecture import transposed_weights
from modalign.patches.changes import NEGLIGIBLE, Change, DenseChange, LowRankChange, changed
from modalign.patches.folder_weights import FolderWeights, read_from
from modalign.patches.header import BaseTensor, PatchHeader, with_history
from modalign.patches.patch import Patch
from modalign.patches.patched_folder import PatchedFolder, is_tied
from modalign.progress import Progress

MAX_RANK = 64
_MORE = 8  # extra columns of the sketch beyond the rank wanted


def difference(
    folder: Path,
    base: Path,
    *,
    tolerance: float = 0.0,
    max_rank: int = MAX_RANK,
    name: str | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Make the patch that turns one model into another: base + patch has the folder's values.

    Tensors are read one at a time from both folders. A matrix is stored as factors if they are
    smaller and reproduce every value of the folder (or are within ``tolerance``); anything else is
    stored dense, in the narrowest type that reproduces every value. Only the sign of a zero may be lost.

    Args:
        folder: the changed model.
        base: the model the patch is for, without patches.
        tolerance: largest |Delta - left right^T| / |Delta| (Frobenius) of a matrix stored as factors;
            0 for exact.
        max_rank: the most columns of factors to try.
        name: of the patch; the folder's name by default.
        progress: told how many tensors are compared.

    Raises:
        UsageError: the base carries patches, or the tolerance is not within 0 to 1.
        DataError: the models differ in more than values, are equal, or hold values that no change of
            the base can give.
    """
    if not 0 <= tolerance < 1:
        raise UsageError(f"the tolerance {tolerance} is not at least 0 and below 1")
    folder, base = read_from(folder), read_from(base)
    source = PatchedFolder(base)
    if source.log.stack:
        raise UsageError(
            f"{base} carries the patch {source.log.stack[0].name!r}: give the model without patches"
        )
    before, after = source.weights, PatchedFolder(folder).weights
    _check_alike(before, after)
    transposed = transposed_weights(base)
    tensors: dict[str, BaseTensor] = {}
    changes: dict[str, Change] = {}
    errors: dict[str, float] = {}
    for tensor, old, new in _changed_tensors(before, after, progress):
        flipped = any(_same_end(tensor, each) for each in transposed)
        tied = is_tied(before, tensor, before.read)
        if tied and _twin(before, tensor, old) is not None:
            raise DataError(
                f"{base} stores the tied tensor {tensor} twice; load it and save it with "
                "save_pretrained, which stores it once"
            )
        tensors[tensor] = BaseTensor(
            sha256=tensor_hash(old), shape=tuple(old.shape), transposed=flipped, tied=tied
        )
        changes[tensor], errors[tensor] = change_between(
            tensor, old, new, flipped, tolerance, max_rank
        )
    if not changes:
        raise DataError(f"{folder} and {base} hold the same values: there is nothing to patch")
    newer = any(each.tied for each in tensors.values()) or any(
        value.dtype == torch.bfloat16 for c in changes.values() for value in c.tensors().values()
    )
    header = PatchHeader(
        format_version=2 if newer else 1,
        name=name or folder.name,
        method="difference",
        model=str(base),
        base=tensors,
        settings={"tolerance": tolerance, "max_rank": max_rank}
        | ({"errors": {n: e for n, e in errors.items() if e}} if tolerance else {}),
    )
    return Patch(with_history(header, f"difference of {folder.name} and {base.name}"), changes)


def _check_alike(before: FolderWeights, after: FolderWeights) -> None:
    """Refuse models whose tensors differ in more than their values."""
    ours, theirs = ({n: p.shape for n, p in w.everything.items()} for w in (before, after))
    for name in sorted(set(ours) ^ set(theirs)):
        lacking = after if name in ours else before
        raise DataError(f"{lacking.folder} has no tensor {name}: not a change of values alone")
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise DataError(
                f"{name} has the shape {shape} in {before.folder}, {theirs[name]} in {after.folder}: "
                "not a change of values alone"
            )
    for name, place in before.everything.items():
        if not place.patchable and not torch.equal(before.read(name), after.read(name)):
            raise DataError(f"{name} holds whole numbers that differ; no patch changes those")


def _changed_tensors(
    before: FolderWeights, after: FolderWeights, progress: Progress | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, old and new value of each tensor that differs, file by file."""
    names = sorted(before.places, key=lambda name: (before.places[name].file, name))
    for number, name in enumerate(names):
        if progress:
            progress("tensors", number, len(names))
        old, new = before.read(name), after.read(name)
        if not torch.equal(old.double(), new.double()):
            yield name, old, new


def change_between(
    name: str,
    old: Tensor,
    new: Tensor,
    transposed: bool,
    tolerance: float = 0.0,
    max_rank: int = 0,
) -> tuple[Change, float]:
    """Find the smallest change that gives the new values, and its relative error.

    Args:
        name: of the tensor, for messages.
        old, new: values as stored.
        transposed: whether they are stored as (d_in, d_out).
        tolerance: of factors; 0 for exact.
        max_rank: of factors; 0 for a dense change.

    Raises:
        DataError: no change of the old values gives the new ones.
    """
    delta = new.double() - old.double()
    delta = delta.T.contiguous() if transposed else delta
    if not bool(delta.isfinite().all()):
        raise DataError(f"{name} holds values that are not finite")

    def exact(change: Change) -> bool:
        return torch.equal(changed(old, [change], transposed).double(), new.double())

    size = float(delta.norm())
    for change in _low_rank(delta, max_rank):
        error = float((delta - change.delta()).norm()) / size
        if exact(change):
            return change, 0.0
        if error <= tolerance:
            return change, error
    for dtype in dict.fromkeys((old.dtype, torch.float32, torch.float64)):
        dense = DenseChange(delta.to(dtype))
        if bool(dense.change.isfinite().all()) and exact(dense):
            return dense, 0.0
    kept, wider = (str(each.dtype).removeprefix("torch.") for each in (old, new))
    raise DataError(
        f"no change of {name} gives the folder's values: it is stored as {kept} in the base and as "
        f"{wider} in the folder; save both in one type"
    )


def _low_rank(delta: Tensor, max_rank: int) -> Iterator[LowRankChange]:
    """Yield truncations of a matrix, smallest first, all with fewer numbers than it has.

    They come from a seeded randomised range finder with one power iteration (Halko, Martinsson, Tropp,
    arXiv 0909.4061, algorithm 4.3 with q = 1) on rank + 8 columns.
    """
    if delta.dim() != 2:
        return
    largest = min(max_rank, (delta.numel() - 1) // sum(delta.shape), *delta.shape)
    if largest < 1:
        return
    width = min(largest + _MORE, *delta.shape)
    sketch = torch.randn(
        delta.shape[1], width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    Q = torch.linalg.qr(delta @ sketch)[0]
    Q = torch.linalg.qr(delta @ (delta.T @ Q))[0]
    U, values, Vh = torch.linalg.svd(Q.T @ delta, full_matrices=False)
    left, right = Q @ (U * values), Vh.T
    own = int((values > NEGLIGIBLE * values[0]).sum())
    powers = {2**i for i in range(largest.bit_length())}
    for rank in sorted(r for r in {*powers, own, largest} if r <= largest):
        first, second = left[:, :rank].contiguous(), right[:, :rank].contiguous()
        yield LowRankChange(first, second, (-1,) * rank)


def _same_end(first: str, second: str) -> bool:
    """Return whether one name is the other, or ends with it."""
    return first == second or first.endswith(f".{second}") or second.endswith(f".{first}")


def _twin(weights: FolderWeights, name: str, value: Tensor) -> str | None:
    """Return the name of another tensor with the same values."""
    wanted = tensor_hash(value)
    others = [n for n, place in weights.places.items() if place.shape == value.shape and n != name]
    return next((other for other in others if tensor_hash(weights.read(other)) == wanted), None)
