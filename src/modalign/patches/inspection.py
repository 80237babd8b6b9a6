"""Report what is in a patch, how large it is, and whether it fits a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import nn

from modalign.errors import DataError
from modalign.patches.apply import view
from modalign.patches.changes import Change
from modalign.patches.cuts import Cut
from modalign.patches.fit import check_order, check_tokenizer
from modalign.patches.header import PatchContent, PatchHeader, patch_hash
from modalign.patches.patched_folder import PatchedFolder
from modalign.patches.storage import load_patch


class TensorReport(BaseModel):
    """One changed tensor.

    Attributes:
        name: the parameter.
        form: how the change is stored; ``cut`` for a structure's tensors.
        shape: (d_out, d_in), or (d,); for a cut tensor, as the model stores it.
        columns: of the stored factors; None for a dense change.
        rank: of Delta; None for a cut.
        norm: Frobenius norm of Delta; None for a cut.
        kept: the shape that a cut leaves; empty if the tensor is removed, None for a change.
        relative: norm divided by that of W; None without the model.
        stored_as: the tensor's name in the model's files; None without the model.
    """

    name: str
    form: Literal["solved", "low-rank", "dense", "sliced", "weighted", "cut"]
    shape: tuple[int, ...]
    columns: int | None = None
    rank: int | None = None
    norm: float | None = None
    kept: tuple[int, ...] | None = None
    relative: float | None = None
    stored_as: str | None = None


class Inspection(BaseModel):
    """A patch's header and the size of its changes."""

    sha256: str
    header: PatchHeader
    tensors: list[TensorReport]


def inspect_patch(patch: PatchContent, model: Path | None = None) -> Inspection:
    """Measure a patch.

    Args:
        patch: the patch to measure.
        model: its base model's folder, for norms relative to the weights.

    Raises:
        DataError: the patch does not fit the model.
    """
    sha256 = patch_hash(patch)
    names: dict[str, str] = {}
    folder = PatchedFolder(model) if model is not None else None
    if folder is not None:
        patch, names = _fitted(patch, folder)
    tensors = [_cut(patch.header, name, cut) for name, cut in patch.cuts.items()]
    for name, change in patch.changes.items():
        report = _measure(name, change)
        if folder is not None and report.norm is not None:
            weight = float(folder.original(names[name]).double().norm())
            report.relative = report.norm / weight if weight else None
            report.stored_as = names[name]
        tensors.append(report)
    return Inspection(sha256=sha256, header=patch.header, tensors=tensors)


def _cut(header: PatchHeader, name: str, cut: Cut) -> TensorReport:
    shape = header.base[name].shape
    kept = cut.shape(shape) if cut.name is not None else ()
    return TensorReport(name=name, form="cut", shape=shape, kept=kept)


def _measure(name: str, change: Change) -> TensorReport:
    if len(change.shape) == 2:
        left, _, values = change.balanced()
        rank, norm = left.shape[1], float(values.norm())
    else:
        norm = float(torch.linalg.vector_norm(change.delta()))
        rank = int(norm > 0)
    factors = change.low_rank()
    return TensorReport(
        name=name,
        form=change.form,
        shape=change.shape,
        columns=None if factors is None else factors.columns,
        rank=rank,
        norm=norm,
    )


def distance(first: PatchContent, second: PatchContent) -> dict[str, float]:
    """Return how far apart two patches of one base are: |Delta_1 - Delta_2| / |Delta_2| per tensor.

    A tensor that only one of them changes counts as zero for the other; if both are zero, the distance is 0.
    """
    found = {}
    for name in dict.fromkeys([*second.changes, *first.changes]):
        one, two = (
            each.changes[name].delta().double() if name in each.changes else torch.zeros(())
            for each in (first, second)
        )
        difference, size = float((one - two).norm()), float(two.norm())
        found[name] = difference / size if size else (0.0 if difference == 0 else float("inf"))
    return found


def fits_folder(patch: PatchContent, folder: Path) -> dict[str, str]:
    """Check that a patch can be applied to a model folder; a folder that carries it already also fits.

    Returns:
        Name in the patch -> name in the folder's files.

    Raises:
        DataError: tensors or tokenizer differ, or patches that must be below are missing.
    """
    return _fitted(patch, PatchedFolder(folder))[1]


def _fitted(patch: PatchContent, model: PatchedFolder) -> tuple[PatchContent, dict[str, str]]:
    problems = model.status().problems
    if problems:
        raise DataError(f"{model.folder} is not what its log says: {problems[0]}")
    below = [(each.name, each.sha256) for each in model.log.stack]
    fitted, names = model.fitted(patch)
    sha256 = patch_hash(fitted)
    if sha256 not in {each for _, each in below}:
        check_order(fitted, sha256, below, str(model.folder))
    model.check_tokenizer(patch)
    return fitted, names


def with_patches(model: nn.Module, tokenizer: Any, files: Sequence[Path]) -> nn.Module:
    """Return a model with patch files on top, in the order given; its weights are not changed.

    Raises:
        DataError: a file is not a patch, or does not fit the model or its tokenizer.
    """
    for file in files:
        patch = load_patch(file)
        check_tokenizer(patch, tokenizer)
        model = view(model, patch)
    return model
