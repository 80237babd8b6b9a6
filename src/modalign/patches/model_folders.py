"""Apply patches to a model folder's weights, list them, and remove them bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import bytes_in, check_room, new_folder
from modalign.patches.fit import locate
from modalign.patches.folder_log import Log
from modalign.patches.folder_weights import PART
from modalign.patches.header import PatchContent
from modalign.patches.patched_folder import LOG, PATCHES, FolderStatus, PatchedFolder, entry_of
from modalign.patches.pruned_folder import rewritten_files, write_pruned
from modalign.patches.storage import save_patch

LOCK = ".lock"


def is_patched(folder: Path) -> bool:
    """Return whether a folder keeps patches, or did."""
    return (folder / PATCHES / LOG).is_file()


def folder_status(folder: Path) -> FolderStatus:
    """Return the patches of a folder, and whether its weights are what the log says."""
    return PatchedFolder(folder).status()


def apply_to_folder(
    folder: Path,
    patches: Sequence[PatchContent],
    out: Path | None = None,
    *,
    any_tokenizer: bool = False,
) -> FolderStatus:
    """Apply patches to a model folder, on top of those already applied.

    Args:
        folder: a model folder; not changed if ``out`` is given.
        patches: lowest first; a structure can only be the first of all. Patches made for the
            unpruned model are sliced along.
        out: the new folder; None to change ``folder`` itself, which must be a patched one already
            (it keeps the originals).
        any_tokenizer: also apply patches computed for another tokenizer.

    Raises:
        UsageError: ``out`` exists, or ``folder`` would lose its only copy of the weights.
        DataError: a patch does not fit, or the folder is not what its log says.
    """
    if not any_tokenizer:
        for patch in patches:
            PatchedFolder(folder).check_tokenizer(patch)
    structure = _structure_of(patches, out)
    if out is None:
        if not is_patched(folder):
            raise UsageError(
                f"{folder} is the model's only copy; name a folder for the patched model (-o FOLDER)"
            )
        with _alone(folder):
            patched = PatchedFolder(folder)
            patched.recover()
            patched.apply(patches)
        return folder_status(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; name a new folder")
    source = PatchedFolder(folder)
    folder = source.folder
    if source.log.pending is not None:
        raise DataError(
            f"{folder} was interrupted in a change; `modalign patch list {folder} --repair`"
        )
    if structure is None:
        check_room(out, bytes_in(folder), "the patched model takes")
    with new_folder(out) as target:
        if structure is not None:
            _prune(source, structure, target)
            if patches[1:]:
                PatchedFolder(target).apply(patches[1:])
        else:
            _copy_without(folder, target, source.weights.files_of(source.touched_by(patches)))
            PatchedFolder(target, source.weights).apply(patches)
    return folder_status(out)


def _structure_of(patches: Sequence[PatchContent], out: Path | None) -> PatchContent | None:
    """Return the structure among patches, which must be the first."""
    found = [patch for patch in patches if patch.cuts]
    if not found:
        return None
    if len(found) > 1 or patches[0] is not found[0]:
        raise UsageError("a structure goes below all other patches: give one, before the others")
    if out is None:
        raise UsageError("a structure rewrites the weight files; name a new folder (-o FOLDER)")
    return found[0]


def _prune(source: PatchedFolder, structure: PatchContent, target: Path) -> None:
    """Write a pruned model with its structure as the only patch."""
    folder = source.folder
    if source.log.stack:
        raise DataError(
            f"{folder} carries the patch {source.log.stack[0].name!r}, and a structure goes below all "
            "others: apply it to the model without patches, and the patches after it (they are "
            "sliced along)"
        )
    names = locate(structure.header, source.weights.shapes, source.weights.read, str(folder))
    if other := [own for own, found in names.items() if own != found]:
        raise DataError(
            f"the structure {structure.header.name!r} calls a tensor {other[0]}, {folder} calls it "
            f"{names[other[0]]}: its configuration is that of another model"
        )
    _copy_without(folder, target, rewritten_files(folder))
    changes = write_pruned(folder, structure, target)
    entry = entry_of(structure, names)
    save_patch(structure, target / PATCHES / entry.file)
    log = Log(target / PATCHES / LOG)
    log.end(log.begin("apply", [entry], [entry], changes), "done")


def remove_from_folder(
    folder: Path, references: Sequence[str], every: bool = False
) -> FolderStatus:
    """Remove patches from a folder's weights, which are then bit for bit as without them.

    Args:
        folder: a patched folder.
        references: each a patch's name, the beginning of its hash, or a patch file.
        every: remove all.

    Raises:
        UsageError: no such patch is applied.
        DataError: another patch was computed on top of one, or the weights are not as logged.
    """
    if not is_patched(folder):
        raise UsageError(f"{folder} carries no patches (it has no {PATCHES}/{LOG})")
    with _alone(folder):
        patched = PatchedFolder(folder)
        patched.recover()
        gone = list(patched.log.stack) if every else [patched.find(each) for each in references]
        patched.remove(gone)
    return folder_status(folder)


def repair_folder(folder: Path) -> bool:
    """Finish or undo an interrupted change; return whether there was one."""
    if not is_patched(folder):
        return False
    with _alone(folder):
        return PatchedFolder(folder).recover()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder meanwhile. A killed process's lock is released."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with (folder / PATCHES / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ModalignError(f"another process is changing {folder}; wait for it") from error
        yield


def _copy_without(folder: Path, target: Path, left_out: set[str]) -> None:
    def ignore(place: str, names: list[str]) -> set[str]:
        top = Path(place) == folder
        return {n for n in names if n.endswith(PART) or n == LOCK or (top and n in left_out)}

    shutil.copytree(folder, target, ignore=ignore, dirs_exist_ok=True)
