"""A pruning as patches that can be taken off again: the structure, and what recovery changed on top of it."""

from __future__ import annotations

from pathlib import Path

from modalign.compression.pruning.workshop import Candidate, Workshop
from modalign.errors import UsageError
from modalign.patches.difference import difference
from modalign.patches.header import patch_hash
from modalign.patches.patch import Patch
from modalign.patches.storage import load_patch, save_patch
from modalign.patches.structure_patches import structure_patch
from modalign.progress import Progress

ENDING = ".safetensors"


def recovery_file(patch: Path) -> Path:
    """Where the recovery of a structure goes."""
    return patch.with_name(f"{patch.stem}.recovery{ENDING}")


def structure_of(workshop: Workshop, candidate: Candidate, name: str) -> Patch:
    """The structure patch of a candidate.

    Raises:
        UsageError: it is more than rows, columns and layers that go.
    """
    shape, form = candidate.shape, candidate.plan.form
    more = (
        "zeros" if form == "mask" else
        "a modelling file" if shape.code else
        "biases (use --no-compensate)" if shape.added or shape.changed else ""
    )  # fmt: skip
    if more:
        raise UsageError(f"--patch: a structure only takes away; the form {form} needs {more}")
    return structure_patch(
        workshop.source,
        shape.cuts,
        shape.configuration,
        name=name,
        method=f"prune:{candidate.plan.score}",
        settings={"form": form, "removed": candidate.plan.words(workshop.stack)},
    )


def save_recovery(
    structure: Path, pruned: Path, recovered: Path, out: Path, progress: Progress | None
) -> None:
    """Write what recovery changed as a patch on top of the structure.

    Args:
        structure: patch file.
        pruned, recovered: folders.
        out: the patch file to write.
        progress: told how many tensors are compared.

    Raises:
        DataError: the recovered folder is stored in another form.
    """
    found = difference(recovered, pruned, name=out.stem, progress=progress)
    after = (patch_hash(load_patch(structure)),)
    header = found.header.model_copy(update={"after": after, "format_version": 2})
    save_patch(Patch(header, found.changes), out)
