"""Apply a structure to a model folder: cut and rewrite the weight files, and put them back exactly.

Cut tensors have other shapes, so files cannot be changed in place as for other patches. The folder keeps
the unpruned weight files and ``config.json`` whole, in ``patches/unpruned``: putting them back restores
every byte, and patches made for the unpruned model are checked against them. Deleting ``patches`` makes
the folder a pruned model for good.
"""

from __future__ import annotations

import filecmp
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import DataError
from modalign.files import write_atomically
from modalign.hashing import tensor_hash
from modalign.patches.cuts import Cut
from modalign.patches.folder_log import TensorChange
from modalign.patches.folder_weights import INDEX, PART, FolderWeights, opened
from modalign.patches.header import PatchContent, label
from modalign.strict_json import read_object

UNPRUNED = "unpruned"
CONFIG = "config.json"


def rewritten_files(folder: Path) -> set[str]:
    """Return the files of a model folder that a structure rewrites."""
    weights = FolderWeights(folder)
    return {*weights.files, CONFIG, *([INDEX] if (folder / INDEX).is_file() else [])}


def write_pruned(source: Path, structure: PatchContent, target: Path) -> dict[str, TensorChange]:
    """Write the files of a pruned model, one weight file at a time, and keep the unpruned ones.

    Args:
        source: the unpruned model's folder.
        structure: one that fits it.
        target: a folder that holds the source's other files; nothing in it is read.

    Returns:
        The change of every tensor that is cut, renamed or removed, by its name in either model.

    Raises:
        DataError: two tensors get the same name, or the result does not load as its configuration says.
    """
    from modalign.patches.architecture import loading_problem  # needs transformers

    kept = target / "patches" / UNPRUNED
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for file in sorted(rewritten_files(source)):
        shutil.copyfile(source / file, kept / file)
    weights = FolderWeights(kept)
    try:
        hashes = write_weights(weights, target, structure.cuts)
    except DataError as error:
        raise DataError(f"{label(structure)}: {error}") from error
    changes = {
        new: TensorChange(before=before if new == name else "", after=after)
        for name, (new, before, after) in hashes.items()
    }
    for name, base in structure.header.base.items():
        if name not in changes:
            changes[name] = TensorChange(before=base.sha256, after="")
    assert structure.header.structure is not None
    configuration = structure.header.structure.configuration
    write_atomically(target / CONFIG, json.dumps(configuration, indent=2, sort_keys=True) + "\n")

    if problem := loading_problem(target):
        raise DataError(f"{label(structure)} does not fit its configuration: {problem}")
    return changes


def write_weights(
    weights: FolderWeights,
    target: Path,
    cuts: Mapping[str, Cut],
    *,
    changed: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    added: Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[str, str, str]]:
    """Write cut weights, one file at a time, into files of the same names.

    Args:
        weights: those of the whole model.
        target: folder of the files.
        cuts: of the tensors that change.
        changed: gives a cut tensor other values, by its old name.
        added: further tensors, by name; they go into the first file.

    Returns:
        Old name -> new name, and the hashes before and after, for every cut tensor that remains.

    Raises:
        DataError: two tensors get the same name.
    """
    hashes: dict[str, tuple[str, str, str]] = {}
    where: dict[str, str] = {}
    size = 0
    for number, file in enumerate(weights.files):
        tensors = dict(added or {}) if number == 0 else {}
        for name, place in weights.everything.items():
            cut = cuts.get(name)
            new = name if cut is None else cut.name
            if place.file != file or new is None:
                continue
            if new in where or new in tensors:
                raise DataError(f"two tensors get the name {new}")
            value = weights.read(name)
            tensors[new] = changed(name, value if cut is None else cut.of(value))
            if cut is not None:
                hashes[name] = (new, tensor_hash(value), tensor_hash(tensors[new]))
        where |= dict.fromkeys(tensors, file)
        if tensors:  # a file with nothing left is not written
            with opened(weights.folder / file) as held:
                metadata = held.metadata()
            # Outside the reading block: a full disk is not the source's fault.
            save_file(tensors, target / file, metadata)
        size += sum(value.nbytes for value in tensors.values())
    if (weights.folder / INDEX).is_file():
        _write_index(weights.folder / INDEX, where, size, target / INDEX)
    return hashes


def _write_index(source: Path, where: dict[str, str], size: int, target: Path) -> None:
    index = read_object(source)
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    index["weight_map"] = dict(sorted(where.items()))
    write_atomically(target, json.dumps(index, indent=2, sort_keys=True) + "\n")


def restore_unpruned(folder: Path) -> None:
    """Put the unpruned files back in place; after an interruption it can simply be repeated."""
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
    """Open the tensors of a pruned folder's model as they were before pruning."""
    return FolderWeights(folder / "patches" / UNPRUNED)
