"""A patch as one safetensors file: read back whole and as it was written, or refused.

The metadata holds the header and the edit of each column as JSON, and a hash over these and every
tensor. Tensors are named ``{parameter}::keys``, ``dual``, ``residuals``, ``left``, ``right`` or ``delta``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import DataError, ModalignError
from modalign.files import replacing
from modalign.patches.hashing import SHOWN, columns_of, content_hash, tensors_of
from modalign.patches.patch import (
    FORMAT_VERSION,
    Change,
    DenseChange,
    LowRankChange,
    Patch,
    PatchHeader,
    SolvedChange,
)

FORMAT = "modalign-patch"


def save_patch(patch: Patch, path: Path | str) -> str:
    """Write a patch; a file of this name is replaced at the end.

    Returns:
        Its content hash, as :func:`modalign.patches.hashing.patch_hash` gives it.

    Raises:
        ModalignError: the patch contradicts itself or holds numbers that are not finite.
    """
    check_patch(patch, ModalignError, f"the patch {patch.header.name!r} cannot be saved")
    tensors = {name: value.contiguous() for name, value in tensors_of(patch.changes).items()}
    header = patch.header.model_dump(mode="json")
    columns = {name: columns_of(change) for name, change in patch.changes.items()}
    digest = content_hash(header, columns, tensors)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "header": json.dumps(header, ensure_ascii=False),
        "columns": json.dumps(columns),
        "sha256": digest,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:  # written by name: the library wants no second copy in memory
        save_file(_unshared(tensors), file.name, metadata)
    return digest


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none sharing its memory with another (safetensors refuses that)."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found


def load_patch(path: Path | str) -> Patch:
    """Read a patch and verify its hash.

    Raises:
        DataError: no patch, truncated, changed since it was written, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no patch file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is no safetensors file, or a truncated one ({error}); get the file again"
        ) from error
    try:
        header, columns = json.loads(metadata["header"]), json.loads(metadata["columns"])
        if content_hash(header, columns, tensors) != metadata["sha256"]:
            raise DataError(
                f"{path} was changed after it was written: its content does not have the hash "
                f"{metadata['sha256'][:SHOWN]} that it states; get the file again"
            )
        patch = Patch(PatchHeader.model_validate(header), _changes(columns, tensors))
    except (KeyError, ValueError, ValidationError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a usable patch: {first}; compute it again") from error
    check_patch(patch, DataError, f"{path} is not a usable patch")
    return patch


def _check_format(metadata: dict[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is a safetensors file, but not a modalign patch")
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {version or 'unknown'}, this modalign reads "
            f"{FORMAT_VERSION}; use the version of modalign that wrote it, or a newer one"
        )


def _changes(columns: dict[str, list[int] | None], tensors: dict[str, Tensor]) -> dict[str, Change]:
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in columns}
    for key, value in tensors.items():
        name, _, part = key.rpartition("::")
        parts[name][part] = value
    found: dict[str, Change] = {}
    for name, held in parts.items():
        edits = tuple(columns[name] or ())
        kinds: dict[frozenset[str], Any] = {
            frozenset({"keys", "dual", "residuals"}): lambda held=held, edits=edits: SolvedChange(
                held["keys"], held["dual"], held["residuals"], edits
            ),
            frozenset({"left", "right"}): lambda held=held, edits=edits: LowRankChange(
                held["left"], held["right"], edits
            ),
            frozenset({"delta"}): lambda held=held: DenseChange(held["delta"]),
        }
        if frozenset(held) not in kinds:
            raise ValueError(f"the change of {name} has the parts {sorted(held)}")
        found[name] = kinds[frozenset(held)]()
    return found


def check_patch(patch: Patch, error: type[ModalignError], what: str) -> None:
    """Refuse a patch whose header, changes and shapes do not fit each other.

    Args:
        patch: to be checked.
        error: what to raise.
        what: how its message begins.
    """
    header = patch.header
    if not patch.changes:
        raise error(f"{what}: it changes nothing")
    if set(header.base) != set(patch.changes):
        odd = sorted(set(header.base) ^ set(patch.changes))[0]
        raise error(f"{what}: {odd} is only in its header or only among its changes")
    ids = [edit.id for edit in header.edits]
    twice = {each for each in ids if ids.count(each) > 1} if len(set(ids)) != len(ids) else set()
    if twice:
        raise error(f"{what}: the edit id {sorted(twice)[0]!r} is used twice")
    for name, change in patch.changes.items():
        wrong = _wrong(change, header.base[name].shape, header.base[name].transposed, len(ids))
        if wrong:
            raise error(f"{what}: the change of {name} {wrong}")


def _wrong(change: Change, shape: tuple[int, ...], transposed: bool, edits: int) -> str:
    """What is wrong with one change; empty where nothing is."""
    if isinstance(change, SolvedChange) and change.dual.shape != change.keys.shape:
        return "has keys and dual of different shapes"
    expected = shape[::-1] if transposed else shape
    if tuple(change.shape) != tuple(expected):
        return f"has the shape {tuple(change.shape)}, its tensor {tuple(expected)}"
    tensors = [value for value in vars(change).values() if isinstance(value, Tensor)]
    if not all(bool(torch.isfinite(value).all()) for value in tensors):
        return "has values that are not finite"
    return "" if isinstance(change, DenseChange) else _wrong_columns(change, tensors, edits)


def _wrong_columns(change: SolvedChange | LowRankChange, tensors: list[Tensor], edits: int) -> str:
    widths = {value.shape[1] for value in tensors}
    if widths != {len(change.edits)}:
        return f"has {sorted(widths)} columns, and names the edits of {len(change.edits)}"
    if any(not -1 <= edit < edits for edit in change.edits):
        return f"has columns of edits that are not among its {edits}"
    return ""
