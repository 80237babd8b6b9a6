"""A structure in a model folder: the weight files cut and written anew, and put back as they were.

Cut tensors have other shapes, so files cannot be changed in place as for other patches. The folder keeps
the unpruned weight files and ``config.json`` whole, in ``patches/unpruned``: putting them back gives
every byte that was there, and patches made for the unpruned model are checked against them. Deleting
``patches`` makes the folder a pruned model for good.
"""

from __future__ import annotations

import filecmp
import json
import secrets
import shutil
from pathlib import Path

from safetensors.torch import save_file

from modalign.errors import DataError
from modalign.files import write_atomically
from modalign.hashing import tensor_hash
from modalign.patches.folder_log import TensorChange
from modalign.patches.folder_weights import INDEX, PART, FolderWeights, opened
from modalign.patches.header import PatchContent, label
from modalign.patches.structure_patches import result_name

UNPRUNED = "unpruned"
CONFIG = "config.json"


def rewritten_files(folder: Path) -> set[str]:
    """The files of a model folder that a structure writes anew."""
    weights = FolderWeights(folder)
    return {*weights.files, CONFIG, *([INDEX] if (folder / INDEX).is_file() else [])}


def write_pruned(source: Path, structure: PatchContent, target: Path) -> dict[str, TensorChange]:
    """Write the files of a pruned model, one weight file at a time, and keep those it is made of.

    Args:
        source: the unpruned model's folder.
        structure: fits it.
        target: has the source's other files; nothing in it is read.

    Returns:
        What becomes of every tensor that is cut, renamed or removed, by its name in either model.

    Raises:
        DataError: two tensors get one name, or the result does not load as its configuration says.
    """
    from modalign.patches.architecture import loading_problem  # here: it needs transformers

    kept = target / "patches" / UNPRUNED
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for file in sorted(rewritten_files(source)):
        shutil.copyfile(source / file, kept / file)
    weights = FolderWeights(kept)
    where: dict[str, str] = {}
    changes: dict[str, TensorChange] = {}
    size = 0
    for file in weights.files:
        tensors = {}
        for name, place in weights.everything.items():
            new, cut = result_name(structure, name), structure.cuts.get(name)
            if place.file != file or new is None:
                continue
            if new in where:
                raise DataError(f"{label(structure)} gives two tensors the name {new}")
            where[new] = file
            value = weights.read(name)
            tensors[new] = value if cut is None else cut.of(value)
            if cut is not None:
                before = tensor_hash(value) if new == name else ""
                changes[new] = TensorChange(before=before, after=tensor_hash(tensors[new]))
        if tensors:  # a file of which nothing is left is not written
            with opened(kept / file) as held:
                save_file(tensors, target / file, held.metadata())
        size += sum(value.nbytes for value in tensors.values())
    for name, base in structure.header.base.items():
        if name not in where:
            changes[name] = TensorChange(before=base.sha256, after="")
    if (source / INDEX).is_file():
        _write_index(source / INDEX, where, size, target / INDEX)
    assert structure.header.structure is not None
    configuration = structure.header.structure.configuration
    write_atomically(target / CONFIG, json.dumps(configuration, indent=2, sort_keys=True) + "\n")

    if problem := loading_problem(target):
        raise DataError(f"{label(structure)} does not fit its configuration: {problem}")
    return changes


def _write_index(source: Path, where: dict[str, str], size: int, target: Path) -> None:
    index = json.loads(source.read_text(encoding="utf-8"))
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    index["weight_map"] = dict(sorted(where.items()))
    write_atomically(target, json.dumps(index, indent=2, sort_keys=True) + "\n")


def restore_unpruned(folder: Path) -> None:
    """Put the unpruned files back in place; done again after an interruption, it ends the same."""
    kept = folder / "patches" / UNPRUNED
    wanted = {path.name for path in kept.iterdir() if not path.name.endswith(PART)}
    for name in sorted(wanted):
        if not (folder / name).is_file() or not filecmp.cmp(
            kept / name, folder / name, shallow=False
        ):
            part = folder / f".{name}.{secrets.token_hex(4)}{PART}"
            shutil.copyfile(kept / name, part)
            part.replace(folder / name)


def unpruned_weights(folder: Path) -> FolderWeights:
    """The tensors of a pruned folder's model before it was pruned."""
    return FolderWeights(folder / "patches" / UNPRUNED)
