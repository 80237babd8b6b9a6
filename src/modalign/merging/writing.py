"""Write the merged model: file by file and tensor by tensor, each made of blocks, so that memory stays bounded."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign.errors import DataError, ModalignError
from modalign.hashing import little_endian, tensor_hash
from modalign.merging.alignment import Alignment
from modalign.merging.coefficients import Coefficients
from modalign.merging.deltas import Deltas
from modalign.merging.registry import MergeMethod
from modalign.patches.folder_weights import INDEX, PART
from modalign.patches.patched_folder import PATCHES
from modalign.progress import Progress
from modalign.strict_json import loads

_LEFT_OUT = {
    PATCHES,
    "README.md",
    "merge.json",
    "result.json",
    "report.html",
    "report.md",
    "report.json",
    "report.schema.json",
}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """How tensors are merged.

    Attributes:
        method: its function.
        options: of the method, complete.
        coefficients: the parents' weights.
        seed: of what a method draws.
    """

    method: MergeMethod
    options: Mapping[str, Any]
    coefficients: Coefficients
    seed: int = 0


@dataclass
class Hashes:
    """The parents' hashes, gathered while their tensors are read."""

    tensors: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, parent: str, identity: str, value: Tensor) -> None:
        """Take in one tensor of a parent."""
        self.tensors.setdefault(parent, {})[identity] = tensor_hash(value)

    def of(self, parent: str) -> str:
        """SHA-256 over the tensors of a parent that were merged, by identity."""
        lines = [f"{name} {value}\n" for name, value in sorted(self.tensors[parent].items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def blocks(
    alignment: Alignment, recipe: Recipe, identity: str, hashes: Hashes | None = None
) -> Iterator[Tensor]:
    """Yield the merged tensor by blocks of rows, in the type of the merged model; flat where it has no rows.

    Raises:
        DataError: a parent's values are not finite, or the result does not fit the type.
    """
    place = alignment.like.place(identity)
    dtype = DTYPES[place.dtype]
    found = alignment.tensors(identity)
    if hashes is not None:
        for name, value in found.items():
            hashes.add(name, identity, value)
    found = {name: value if value.dim() else value.reshape(1) for name, value in found.items()}
    weights = recipe.coefficients.of(identity)
    parents = {name: found[name] for name in weights}
    use_base = recipe.method.needs_base and alignment.base is not None
    origin = (
        found[alignment.base.name] if use_base and alignment.base else parents[next(iter(weights))]
    )
    deltas = Deltas(identity, origin, parents, recipe.seed)
    merged = recipe.method.merged(deltas, weights, recipe.options)
    for rows, delta in zip(deltas.rows(), merged, strict=True):
        value = (origin[rows].double() + delta).to(dtype)
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                f"{identity}: the merged values do not fit the type {place.dtype}; use smaller weights"
            )
        yield value


def write_merged(
    alignment: Alignment,
    recipe: Recipe,
    target: Path,
    *,
    hashes: Hashes | None = None,
    progress: Progress = lambda name, done, total: None,
) -> int:
    """Write the merged model into an empty folder.

    Every tensor is read once from every parent and written block by block: memory holds one tensor per parent,
    the base and the block that is worked on.

    Args:
        alignment: what is merged, and from where.
        recipe: how.
        target: the folder; it is a model once this has returned.
        hashes: gathers the parents' hashes.
        progress: told after each tensor.

    Returns:
        The number of tensors written.

    Raises:
        DataError: values that are not finite; the tensor and the parent are named.
    """
    like = alignment.like
    copy_beside(like.folder, set(like.weights.files), target)
    identity_of = {stored: identity for identity, names in like.names.items() for stored in names}
    count, total = 0, len(like.weights.everything)
    for file in like.weights.files:
        places = {n: p for n, p in like.weights.everything.items() if p.file == file}
        order = sorted(places, key=lambda name: places[name].begin)

        def told() -> None:
            nonlocal count
            count += 1
            progress("tensors", count, total)

        _write_file(
            like.folder / file,
            target / file,
            [(n, content(alignment, recipe, identity_of[n], hashes)) for n in order],
            told,
        )
    return total


def content(
    alignment: Alignment, recipe: Recipe, identity: str, hashes: Hashes | None
) -> Callable[[], Iterator[Tensor]]:
    """Return a function that yields a tensor of the merged model by blocks: merged, or copied from one parent."""
    place = alignment.like.place(identity)

    def merged() -> Iterator[Tensor]:
        yield from blocks(alignment, recipe, identity, hashes)

    def copied() -> Iterator[Tensor]:
        parent = alignment.assigned.get(identity, alignment.like)
        value = parent.read(identity)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(
                f"{identity} of {parent.name} holds values that are not finite; merge another checkpoint"
            )
        yield value.to(DTYPES.get(place.dtype, value.dtype))

    return copied if identity in alignment.assigned or not place.patchable else merged


def _write_file(
    source: Path,
    target: Path,
    contents: list[tuple[str, Callable[[], Iterator[Tensor]]]],
    told: Callable[[], None],
) -> None:
    """Write one safetensors file of the same tensors as another, with other values."""
    with source.open("rb") as held:
        (length,) = struct.unpack("<Q", held.read(8))
        header = loads(held.read(length))
    start = 0
    for name, _ in contents:  # offsets without gaps, in the order of the file
        begin, end = header[name]["data_offsets"]
        header[name]["data_offsets"] = [start, start := start + end - begin]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, values in contents:
            before = out.tell()
            for block in values():
                out.write(little_endian(block.contiguous()))
            begin, end = header[name]["data_offsets"]
            if out.tell() - before != end - begin:
                raise ModalignError(
                    f"{name}: {out.tell() - before:,} bytes written, {end - begin:,} expected"
                )
            told()


def copy_beside(folder: Path, weights: set[str], target: Path) -> None:
    """Copy all of a model's folder but its weights and what belongs to its own history."""

    def ignored(place: str, names: list[str]) -> set[str]:
        top = Path(place) == folder
        return {
            n
            for n in names
            if n.endswith(PART)
            or (top and (n in weights or n in _LEFT_OUT or n.startswith(".") or _is_weights(n)))
        }

    shutil.copytree(folder, target, ignore=ignored, dirs_exist_ok=True)
    if (folder / INDEX).is_file() and weights != {"model.safetensors"}:
        shutil.copyfile(folder / INDEX, target / INDEX)


def _is_weights(name: str) -> bool:
    return name.endswith(
        (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".safetensors.index.json")
    )
