"""Patches of kind ``structure``: which parts of which tensors are kept, and the resulting configuration.

A structure goes below all other patches. A patch that was computed on the unpruned model is sliced along:
its change of a tensor loses the rows and columns that the tensor loses, and nothing else. So pruning and
then applying the sliced patch gives, bit for bit, the same as applying the patch and then pruning. It is
not the patch that would have been computed on the pruned model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign.errors import DataError, ModalignError
from modalign.hashing import tensor_hash
from modalign.patches.cuts import Cut
from modalign.patches.folder_weights import FolderWeights
from modalign.patches.header import (
    BaseTensor,
    PatchContent,
    PatchHeader,
    Structure,
    label,
    patch_hash,
    with_history,
)
from modalign.patches.patch import Patch
from modalign.patches.storage import check_patch


def structure_patch(
    folder: Path,
    cuts: Mapping[str, Cut],
    configuration: Mapping[str, Any],
    *,
    name: str,
    method: str,
    settings: Mapping[str, Any] | None = None,
) -> Patch:
    """Make a structure for a model folder, bound to the tensors that it cuts.

    Args:
        folder: of the unpruned model.
        cuts: what is kept of each tensor that changes, by its name in the files.
        configuration: the resulting ``config.json``, complete.
        name, method, settings: for the header.

    Raises:
        DataError: a tensor is missing, or its cut does not fit it.
    """
    weights = FolderWeights(folder)
    for tensor in cuts:
        if tensor not in weights.places:
            raise DataError(f"{folder} has no tensor {tensor} to cut")
    header = PatchHeader(
        format_version=2,
        name=name,
        kind="structure",
        method=method,
        model=str(folder),
        base={
            tensor: BaseTensor(
                sha256=tensor_hash(weights.read(tensor)), shape=weights.places[tensor].shape
            )
            for tensor in cuts
        },
        settings=dict(settings or {}),
        structure=Structure(
            configuration=dict(configuration),
            names={tensor: cut.name for tensor, cut in cuts.items() if cut.name != tensor},
        ),
    )
    made = Patch(with_history(header, f"cut {len(cuts)} tensors of {folder.name}"), cuts=dict(cuts))
    check_patch(made, DataError, f"the structure {name!r}")
    return made


def result_name(structure: PatchContent, tensor: str) -> str | None:
    """Return the name of an unpruned model's tensor in the pruned one; None if it is gone."""
    cut = structure.cuts.get(tensor)
    return tensor if cut is None else cut.name


def slice_along(
    patch: PatchContent,
    structure: PatchContent,
    names: Mapping[str, str],
    unpruned: Callable[[str], Tensor],
    after: Sequence[str] = (),
) -> Patch:
    """Turn a patch for the unpruned model into one for the pruned model.

    Args:
        patch: made for the unpruned model.
        structure: the one that was applied.
        names: tensor in the patch -> tensor of the unpruned model.
        unpruned: gives a tensor of the unpruned model.
        after: hashes of the patches that must lie between the two.

    Raises:
        DataError: it changes a tensor that the structure removes.
    """
    base, changes = {}, {}
    for own, tensor in names.items():
        expected, change = patch.header.base[own], patch.changes[own]
        cut, name = structure.cuts.get(tensor), result_name(structure, tensor)
        if name is None:
            raise DataError(
                f"{label(patch)} changes {tensor}, which the structure {label(structure)} removes: "
                "it cannot be sliced along; compute it again on the pruned model"
            )
        if cut is not None:
            value = cut.of(unpruned(tensor))
            if any(index is not None for index in cut.kept[2:]):
                raise DataError(f"the change of {tensor} cannot be sliced along a third axis")
            kept = cut.kept[::-1] if expected.transposed else cut.kept
            change = change.sliced(kept[0], kept[1] if len(kept) > 1 else None)
            expected = expected.model_copy(
                update={"sha256": tensor_hash(value), "shape": tuple(value.shape)}
            )
        base[name], changes[name] = expected, change
    if len(changes) != len(names):
        raise ModalignError(f"two tensors of {label(patch)} would get one name")
    header = with_history(
        patch.header,
        f"sliced {label(patch)} along the structure {label(structure)}",
        base=base,
        after=(patch_hash(structure), *after),
        format_version=2,
        sliced_from=patch_hash(patch),
    )
    # The same slices are the same patch, no matter when they are made.
    return Patch(header.model_copy(update={"created": patch.header.created}), changes)
