"""Patches in the weights of a model folder: applied, listed, taken out bit for bit.

A patched folder is a model folder like any other, with a folder ``patches`` in it: a copy of every
patch that is in, the touched tensors as they were (``originals.safetensors``), and ``log.jsonl``. The
weights are always original + sum of the changes, rounded once, so whatever is removed, and in
whatever order, the rest is exactly what it would have been without.

A change in place writes new files beside the old ones, then the log's ``begun``, then renames, then
the log's ``done``. Interrupted at any point, either nothing has changed or ``recover`` puts it right.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import new_folder, replacing
from modalign.models.hashing import tensor_hash
from modalign.patches.changes import changed
from modalign.patches.fit import check_order, check_removable, check_tokenizer, locate
from modalign.patches.header import SHOWN, PatchContent, patch_hash
from modalign.patches.log import Applied, Log, TensorChange, now
from modalign.patches.storage import load_patch, save_patch
from modalign.patches.weights import PART, Weights

PATCHES = "patches"
ORIGINALS = "originals.safetensors"
LOG = "log.jsonl"
LOCK = ".lock"


@dataclass(frozen=True)
class FolderStatus:
    """What a folder carries.

    Attributes:
        folder: the model folder.
        stack: the patches that are in, lowest first.
        problems: what is not as the log says; empty if all is well.
        interrupted: a change was begun and not ended.
    """

    folder: Path
    stack: tuple[Applied, ...]
    problems: tuple[str, ...] = ()
    interrupted: bool = False


def is_patched(folder: Path) -> bool:
    """Whether a folder keeps patches (or did)."""
    return (folder / PATCHES / LOG).is_file()


def folder_status(folder: Path) -> FolderStatus:
    """The patches of a folder, and whether its weights are what the log says."""
    return PatchedFolder(folder).status()


def apply_to_folder(
    folder: Path,
    patches: Sequence[PatchContent],
    out: Path | None = None,
    *,
    any_tokenizer: bool = False,
) -> FolderStatus:
    """Apply patches to a model folder, on top of those that are in.

    Args:
        folder: a model folder; it stays as it is if ``out`` is given.
        patches: lowest first.
        out: the new folder; None to change ``folder`` itself, which must be a patched one already
            (it keeps the originals).
        any_tokenizer: also apply what was computed for another tokenizer.

    Raises:
        UsageError: ``out`` exists, or ``folder`` would lose its only copy of the weights.
        DataError: a patch does not fit, or the folder is not what its log says.
    """
    if not any_tokenizer:
        for patch in patches:
            PatchedFolder(folder).check_tokenizer(patch)
    if out is None:
        if not is_patched(folder):
            raise UsageError(
                f"{folder} is a model's only copy; name the folder for the patched one (-o FOLDER)"
            )
        with _alone(folder):
            patched = PatchedFolder(folder)
            patched.recover()
            patched.apply(patches)
        return folder_status(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; name a new folder")
    source = PatchedFolder(folder)
    if source.log.pending is not None:
        raise DataError(
            f"{folder} was interrupted in a change; `modalign patch list {folder} --repair`"
        )
    with new_folder(out) as target:
        _copy_without(folder, target, source.weights.files_of(source.touched_by(patches)))
        copy = PatchedFolder(target, source.weights)
        copy.apply(patches)
    return folder_status(out)


def remove_from_folder(
    folder: Path, references: Sequence[str], every: bool = False
) -> FolderStatus:
    """Take patches out of a folder's weights, which are then bit for bit as without them.

    Args:
        folder: a patched folder.
        references: each a patch's name, the beginning of its hash, or a patch file.
        every: take out all.

    Raises:
        UsageError: no such patch is in.
        DataError: another patch was computed on top of one; or the weights are not as logged.
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
    """Finish or undo an interrupted change; whether there was one."""
    if not is_patched(folder):
        return False
    with _alone(folder):
        return PatchedFolder(folder).recover()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process changes the folder meanwhile. A killed one leaves no lock behind."""
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


class PatchedFolder:
    """One model folder with its weights, its originals and its log.

    Args:
        folder: where patches, originals and log are.
        weights: where tensors are read; those of another folder while a copy is being made.
    """

    def __init__(self, folder: Path, weights: Weights | None = None) -> None:
        if weights is None and not (folder / "config.json").is_file():
            raise UsageError(f"{folder} holds no model: it has no config.json")
        self.folder = folder
        self.weights = weights or Weights(folder)
        self.log = Log(folder / PATCHES / LOG)

    # ---- reading -------------------------------------------------------------------------------

    def status(self) -> FolderStatus:
        """What is in, and whether the touched tensors are what the log says."""
        problems = [] if self.log.pending is None else ["a change was interrupted"]
        expected = {} if self.log.pending is not None else self.log.hashes()
        for name, sha256 in expected.items():
            if name not in self.weights.places:
                problems.append(f"{name} is gone from the weights")
            elif (found := tensor_hash(self.weights.read(name))) != sha256:
                problems.append(
                    f"{name} has the hash {found[:SHOWN]}, the log says {sha256[:SHOWN]}"
                )
        for entry in self.log.stack:
            if not (self.folder / PATCHES / entry.file).is_file():
                problems.append(f"the copy of the patch {entry.name!r} ({entry.file}) is gone")
        return FolderStatus(
            self.folder, tuple(self.log.stack), tuple(problems), self.log.pending is not None
        )

    def original(self, name: str) -> Tensor:
        """A tensor without any patch."""
        path = self.folder / PATCHES / ORIGINALS
        if path.is_file():
            with _opened(path) as file:
                if name in file.keys():  # noqa: SIM118
                    found: Tensor = file.get_tensor(name)
                    return found
        return self.weights.read(name)

    def find(self, reference: str) -> Applied:
        """The patch that a name, the beginning of a hash, or a file means."""
        stack = self.log.stack
        fitting = [each for each in stack if each.name == reference]
        if not fitting and Path(reference).is_file():
            wanted = patch_hash(load_patch(reference))
            fitting = [each for each in stack if each.sha256 == wanted]
        if not fitting and len(reference) >= 4:
            fitting = [each for each in stack if each.sha256.startswith(reference)]
        if len(fitting) != 1:
            names = ", ".join(f"{each.name} ({each.sha256[:SHOWN]})" for each in stack) or "none"
            problem = "means several of the patches" if fitting else "is none of the patches"
            raise UsageError(f"{reference!r} {problem} in {self.folder}: {names}")
        return fitting[0]

    def check_tokenizer(self, patch: PatchContent) -> None:
        """Refuse a patch for another tokenizer than the folder's."""
        if patch.header.tokenizer is None:
            return
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"the patch {patch.header.name!r} names the tokenizer it was computed for, and the one "
                f"in {self.folder} cannot be loaded to compare: {str(error).splitlines()[0]}"
            ) from error
        check_tokenizer(patch, tokenizer)

    def touched_by(self, patches: Sequence[PatchContent]) -> set[str]:
        """The tensors of the files that patches change, once it is sure that they fit."""
        return {name for entry in self._fitted(patches) for name in entry.tensors.values()}

    def _fitted(self, patches: Sequence[PatchContent]) -> list[Applied]:
        """Entries for new patches; every hash compared."""
        self._check_state()
        below = [(each.name, each.sha256) for each in self.log.stack]
        entries = []
        for patch in patches:
            sha256 = patch_hash(patch)
            check_order(patch, sha256, below, str(self.folder))
            names = locate(patch.header, self.weights.shapes, self.original, str(self.folder))
            for name in names.values():
                self._check_untied(name)
            file = f"{sha256[:16]}.safetensors"
            entries.append(
                Applied(name=patch.header.name, sha256=sha256, file=file, tensors=names, time=now())
            )
            below.append((patch.header.name, sha256))
        return entries

    def _check_state(self) -> None:
        problems = self.status().problems
        if problems:
            raise DataError(
                f"{self.folder} is not what its log says: {'; '.join(problems[:3])}. Something else "
                "wrote to it; make it anew from the unpatched model"
            )

    def _check_untied(self, name: str) -> None:
        """Refuse an embedding that is the output projection too."""
        shape = self.weights.places[name].shape
        if len(shape) != 2 or shape[0] not in _vocabulary_sizes(self.folder):
            return
        others = [key for key, place in self.weights.places.items()
                  if place.shape == shape and key != name]  # fmt: skip
        own = tensor_hash(self.original(name))
        if not others or any(tensor_hash(self.original(each)) == own for each in others):
            raise UsageError(
                f"{name} is the input embedding and the output projection at once (tied weights): a "
                "patch of one would change the other; untie them first"
            )

    # ---- changing ------------------------------------------------------------------------------

    def apply(self, patches: Sequence[PatchContent]) -> None:
        """Put patches on top."""
        if not patches:
            raise UsageError("name at least one patch")
        entries = self._fitted(patches)
        (self.folder / PATCHES).mkdir(exist_ok=True)
        for patch, entry in zip(patches, entries, strict=True):
            save_patch(patch, self.folder / PATCHES / entry.file)
        self._change("apply", entries, [*self.log.stack, *entries])

    def remove(self, gone: Sequence[Applied]) -> None:
        """Take patches out."""
        if not gone:
            raise UsageError(f"{self.folder} carries no patch to remove")
        self._check_state()
        hashes = [each.sha256 for each in gone]
        present = [(self._patch(each), each.sha256) for each in self.log.stack]
        check_removable(hashes, present, str(self.folder))
        kept = [each for each in self.log.stack if each.sha256 not in hashes]
        self._change("remove", gone, kept)

    def _change(
        self, action: Literal["apply", "remove"], subject: Sequence[Applied], stack: list[Applied]
    ) -> None:
        """Write the tensors that a set of patches touches as another stack says."""
        touched = sorted({name for entry in subject for name in entry.tensors.values()})
        before = {name: tensor_hash(self.weights.read(name)) for name in touched}
        self._keep_originals({name for entry in stack for name in entry.tensors.values()})
        ready, after = self._prepare(touched, stack)
        try:
            tensors = {n: TensorChange(before=before[n], after=after[n]) for n in touched}
            self.log.begin(action, {e.name: e.sha256 for e in subject}, stack, tensors)
        except BaseException:
            for part, _ in ready:
                part.unlink(missing_ok=True)
            raise
        try:
            for part, place in ready:
                part.replace(place)
        finally:  # compared with the log whether or not all were replaced: done, or undone
            self.weights = Weights(self.folder)
            self.recover()
        if self.log.stack != stack:
            raise ModalignError(f"{self.folder}: what was written reads back differently; undone")
        self._tidy()

    def _prepare(
        self, names: Sequence[str], stack: Sequence[Applied]
    ) -> tuple[list[tuple[Path, Path]], dict[str, str]]:
        """New files with these tensors as a stack says, not in place yet."""
        patches = {each.sha256: self._patch(each) for each in stack}

        def value(name: str) -> Tensor:
            found = [
                (patches[entry.sha256], own)
                for entry in stack
                for own, key in entry.tensors.items()
                if key == name
            ]
            if not found:
                return self.original(name)
            transposed = found[0][0].header.base[found[0][1]].transposed
            return changed(self.original(name), [p.changes[own] for p, own in found], transposed)

        return self.weights.prepare(names, value, self.folder)

    def _patch(self, entry: Applied) -> PatchContent:
        patch = load_patch(self.folder / PATCHES / entry.file)
        if patch_hash(patch) != entry.sha256:
            raise DataError(
                f"{self.folder / PATCHES / entry.file} is not the patch that was applied "
                f"({entry.sha256[:SHOWN]}); restore the file"
            )
        return patch

    def _keep_originals(self, names: set[str]) -> None:
        """Have exactly these in the originals beside those that are there: written before any change."""
        path = self.folder / PATCHES / ORIGINALS
        held: set[str] = set()
        if path.is_file():
            with _opened(path) as file:
                held = set(file.keys())
        if not names <= held:
            self._write_originals(names | held)

    def _write_originals(self, names: set[str]) -> None:
        tensors = {name: self.original(name).clone() for name in sorted(names)}
        with replacing(self.folder / PATCHES / ORIGINALS) as file:
            save_file(tensors, file.name, {"format": "pt"})

    def recover(self) -> bool:
        """End a change that was begun: done if all its tensors are there, else undone."""
        pending = self.log.pending
        if pending is None:
            return False
        now_held = {name: tensor_hash(self.weights.read(name)) for name in pending.tensors}
        if all(now_held[name] == change.after for name, change in pending.tensors.items()):
            self.log.end(pending.number, "done")
            return True
        wrong = [n for n, change in pending.tensors.items() if now_held[n] != change.before]
        if wrong:
            ready, after = self._prepare(wrong, self.log.stack)
            odd = [name for name in wrong if after[name] != pending.tensors[name].before]
            if odd:
                for part, _ in ready:
                    part.unlink(missing_ok=True)
                raise DataError(f"{self.folder}: {odd[0]} cannot be restored to what it was")
            for part, place in ready:
                part.replace(place)
            self.weights = Weights(self.folder)
        self.log.end(pending.number, "undone")
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Take away what no applied patch needs: copies, originals, halves of files."""
        place = self.folder / PATCHES
        wanted = {entry.file for entry in self.log.stack}
        halves = [f for file in self.weights.files_of(self.weights.places)
                  for f in self.folder.glob(f".{file}.*{PART}")]  # fmt: skip
        for path in [*place.glob("*.safetensors"), *place.glob(f".*{PART}"), *halves]:
            if path.name != ORIGINALS and path.name not in wanted:
                path.unlink(missing_ok=True)
        names = {name for entry in self.log.stack for name in entry.tensors.values()}
        if not names:
            (place / ORIGINALS).unlink(missing_ok=True)
            return
        with _opened(place / ORIGINALS) as file:
            held = set(file.keys())
        if held != names:
            self._write_originals(names)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore the file") from error


def _vocabulary_sizes(folder: Path) -> set[int]:
    """The vocabulary sizes that a configuration states, its parts' included."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    return {part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)}
