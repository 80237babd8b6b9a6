"""Store a patch as one safetensors file, which is read back exactly as written or refused.

The metadata holds the header and each change's layout (the edit of each column) as JSON, and a hash
over these and every tensor. Tensors are named ``{parameter}::keys``, ``dual``, ``residuals``, ``left``,
``right`` or ``delta``; in format 2 also ``rows`` and ``columns``, ``0/left`` for a soup's first term, and
``axis0`` for a cut.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import DataError, ModalignError
from modalign.files import replacing
from modalign.patches.changes import Change, DenseChange, LowRankChange, SlicedChange, SolvedChange
from modalign.patches.cuts import Cut
from modalign.patches.header import (
    FORMAT_VERSION,
    SHOWN,
    PatchContent,
    PatchHeader,
    content_hash,
    tensors_of,
)
from modalign.patches.patch import Patch
from modalign.patches.weighted import WeightedChange
from modalign.strict_json import loads

FORMAT = "modalign-patch"


def save_patch(patch: PatchContent, path: Path | str) -> str:
    """Write a patch; an existing file of this name is replaced at the end.

    Returns:
        Its content hash, as :func:`modalign.patches.header.patch_hash` gives it.

    Raises:
        ModalignError: the patch contradicts itself or holds numbers that are not finite.
    """
    check_patch(patch, ModalignError, f"the patch {patch.header.name!r} cannot be saved")
    tensors = {name: value.contiguous() for name, value in tensors_of(patch).items()}
    header = patch.header.model_dump(mode="json")
    layouts = {name: change.layout for name, change in patch.changes.items()}
    digest = content_hash(header, layouts, tensors)
    metadata = {
        "format": FORMAT,
        "format_version": str(patch.header.format_version),
        "header": json.dumps(header, ensure_ascii=False),
        "columns": json.dumps(layouts),
        "sha256": digest,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:  # written by name, so that no second copy is held in memory
        save_file(_unshared(tensors), file.name, metadata)
    return digest


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors, none sharing memory with another, which safetensors would refuse."""
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
        DataError: it is not a patch, is truncated, was changed after it was written, or has a newer format.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise DataError(
                f"{path} is a folder, not a patch file: 'modalign patch list {path}' shows what a model carries"
            )
        raise DataError(f"there is no patch file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a safetensors file, or is truncated ({error}); get the file again"
        ) from error
    try:
        header, layouts = loads(metadata["header"]), loads(metadata["columns"])
        if content_hash(header, layouts, tensors) != metadata["sha256"]:
            raise DataError(
                f"{path} was changed after it was written: its content does not have the hash "
                f"{metadata['sha256'][:SHOWN]} that it states; get the file again"
            )
        patch = _assembled(PatchHeader.model_validate(header), layouts, tensors)
    except (KeyError, ValueError, ValidationError, TypeError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a usable patch: {first}; compute it again") from error
    check_patch(patch, DataError, f"{path} is not a usable patch")
    return patch


def _check_format(metadata: dict[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is a safetensors file, but not a modalign patch")
    version = metadata.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        raise DataError(
            f"{path} has format version {version or 'unknown'}, this modalign reads 1 to "
            f"{FORMAT_VERSION}; use the version of modalign that wrote it, or a newer one"
        )


def _assembled(header: PatchHeader, layouts: dict[str, Any], tensors: dict[str, Tensor]) -> Patch:
    structure = header.structure
    touched = layouts if structure is None else header.base
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in touched}
    for key, value in tensors.items():
        name, _, part = key.rpartition("::")
        parts[name][part] = value
    if structure is None:
        return Patch(
            header, {name: read_change(layouts[name], held) for name, held in parts.items()}
        )
    cuts = {}
    for name, held in parts.items():
        axes = range(len(header.base[name].shape))
        if odd := held.keys() - {f"axis{axis}" for axis in axes}:
            raise ValueError(f"the cut of {name} has the part {sorted(odd)[0]}")
        kept = tuple(held.get(f"axis{axis}") for axis in axes)
        cuts[name] = Cut(kept, structure.names.get(name, name))
    return Patch(header, cuts=cuts)


def read_change(layout: Any, tensors: Mapping[str, Tensor]) -> Change:
    """Rebuild the change that was stored as these tensors.

    Args:
        layout: as :attr:`Change.layout` gave it.
        tensors: as :meth:`Change.tensors` gave them.

    Raises:
        ValueError: they do not have a known form.
    """
    if isinstance(layout, dict):
        held: list[dict[str, Tensor]] = [{} for _ in layout["terms"]]
        for name, value in tensors.items():
            number, _, part = name.partition("/")
            held[int(number)][part] = value
        changes = [read_change(each, own) for each, own in zip(layout["terms"], held, strict=True)]
        return WeightedChange(tuple(zip(map(float, layout["weights"]), changes, strict=True)))
    rows, columns = tensors.get("rows"), tensors.get("columns")
    if rows is not None or columns is not None:
        own = {name: value for name, value in tensors.items() if name not in ("rows", "columns")}
        return SlicedChange(read_change(layout, own), rows, columns)
    edits = tuple(layout or ())
    if tensors.keys() == {"keys", "dual", "residuals"}:
        return SolvedChange(tensors["keys"], tensors["dual"], tensors["residuals"], edits)
    if tensors.keys() == {"left", "right"}:
        return LowRankChange(tensors["left"], tensors["right"], edits)
    if tensors.keys() == {"delta"}:
        return DenseChange(tensors["delta"])
    raise ValueError(f"a change has the parts {sorted(tensors)}")


def check_patch(patch: PatchContent, error: type[ModalignError], what: str) -> None:
    """Refuse a patch whose header, changes and shapes do not fit each other.

    Args:
        patch: the patch to check.
        error: what to raise.
        what: how its message begins.
    """
    header = patch.header
    touched = patch.changes if header.kind != "structure" else patch.cuts
    if not touched:
        raise error(f"{what}: it changes nothing")
    if (header.structure is None) != (header.kind != "structure") or bool(patch.cuts) == bool(
        patch.changes
    ):
        raise error(f"{what}: its content is not that of a patch of kind {header.kind}")
    if set(header.base) != set(touched):
        odd = sorted(set(header.base) ^ set(touched))[0]
        raise error(f"{what}: {odd} is only in its header or only among its changes")
    ids = [edit.id for edit in patch.edits]
    if twice := sorted(each for each, count in Counter(ids).items() if count > 1):
        raise error(f"{what}: the edit id {twice[0]!r} is used twice")
    for name, cut in patch.cuts.items():
        if wrong := cut.problem(header.base[name].shape):
            raise error(f"{what}: the cut of {name} {wrong}")
    for name, change in patch.changes.items():
        base = header.base[name]
        shape = base.shape[::-1] if base.transposed else base.shape
        wrong = change.problem(len(ids))
        if not wrong and change.shape != shape:
            wrong = f"has the shape {change.shape}, its tensor {shape}"
        if wrong:
            raise error(f"{what}: the change of {name} {wrong}")
