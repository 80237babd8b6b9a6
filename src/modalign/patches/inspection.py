"""What is in a patch, how large it is, and whether it fits a model folder."""

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
from modalign.patches.fit import check_order, check_tokenizer, locate
from modalign.patches.folder import PatchedFolder
from modalign.patches.header import PatchContent, PatchHeader, patch_hash
from modalign.patches.storage import load_patch


class TensorReport(BaseModel):
    """One changed tensor.

    Attributes:
        name: the parameter.
        form: how the change is stored.
        shape: (d_out, d_in), or (d,).
        columns: of the stored factors; None for a dense change.
        rank: of Delta.
        norm: Frobenius norm of Delta.
        relative: norm over that of W; None without the model.
        stored_as: the tensor's name in the model's files; None without the model.
    """

    name: str
    form: Literal["solved", "low-rank", "dense", "sliced", "weighted"]
    shape: tuple[int, ...]
    columns: int | None
    rank: int
    norm: float
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
        patch: to be measured.
        model: its base model's folder, for norms relative to the weights.

    Raises:
        DataError: the patch does not fit the model.
    """
    names = fits_folder(patch, model) if model is not None else {}
    folder = PatchedFolder(model) if model is not None else None
    tensors = []
    for name, change in patch.changes.items():
        report = _measure(name, change)
        if folder is not None:
            weight = float(folder.original(names[name]).double().norm())
            report.relative = report.norm / weight if weight else None
            report.stored_as = names[name]
        tensors.append(report)
    return Inspection(sha256=patch_hash(patch), header=patch.header, tensors=tensors)


def _measure(name: str, change: Change) -> TensorReport:
    if len(change.shape) == 2:
        left, _, values = change.balanced()
        rank, norm = left.shape[1], float(values.norm())
    else:
        norm = float(torch.linalg.vector_norm(change.delta()))
        rank = int(norm > 0)
    return TensorReport(
        name=name,
        form=change.form,
        shape=change.shape,
        columns=change.columns,
        rank=rank,
        norm=norm,
    )


def distance(first: PatchContent, second: PatchContent) -> dict[str, float]:
    """How far two patches of one base are apart: |Delta_1 - Delta_2| / |Delta_2| per tensor.

    A tensor that only one of them changes counts with zero for the other; both zero is distance 0.
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
    """Check that a patch can be applied to a model folder; a folder that carries it fits, too.

    Returns:
        Name in the patch -> name in the folder's files.

    Raises:
        DataError: other tensors, other tokenizer, or patches that must be below are missing.
    """
    model = PatchedFolder(folder)
    problems = model.status().problems
    if problems:
        raise DataError(f"{folder} is not what its log says: {problems[0]}")
    below = [(each.name, each.sha256) for each in model.log.stack]
    sha256 = patch_hash(patch)
    if sha256 not in {each for _, each in below}:
        check_order(patch, sha256, below, str(folder))
    names = locate(patch.header, model.weights.shapes, model.original, str(folder))
    model.check_tokenizer(patch)
    return names


def with_patches(model: nn.Module, tokenizer: Any, files: Sequence[Path]) -> nn.Module:
    """A model with patch files on top, in the order given, its weights untouched.

    Raises:
        DataError: a file is no patch, or does not fit the model or its tokenizer.
    """
    for file in files:
        patch = load_patch(file)
        check_tokenizer(patch, tokenizer)
        model = view(model, patch)
    return model
