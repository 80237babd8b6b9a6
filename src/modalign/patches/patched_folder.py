"""One patched model folder: its weights, the patches applied, and the log of what happened.

A patched folder is a model folder like any other, with a folder ``patches`` in it: a copy of every
patch applied, the originals of the touched tensors (``originals.safetensors``), and ``log.jsonl``. The
weights are always original + sum of the changes, rounded once, so whatever is removed, and in
whatever order, the rest is exactly what it would have been without. With a structure, the originals are
the pruned tensors, and the unpruned files are kept as well, see ``pruned_folder``.

A change in place writes new files next to the old ones, then the log's ``begun``, then renames, then
the log's ``done``. If it is interrupted, either nothing has changed or ``recover`` puts it right.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from modalign.errors import DataError, ModalignError, UsageError
from modalign.files import replacing
from modalign.hashing import tensor_hash
from modalign.patches.changes import changed
from modalign.patches.fit import check_order, check_removable, check_tokenizer, chosen, locate
from modalign.patches.folder_log import Applied, Event, Log, TensorChange
from modalign.patches.folder_weights import PART, FolderWeights, opened, read_from
from modalign.patches.header import SHOWN, BaseTensor, PatchContent, now, patch_hash
from modalign.patches.pruned_folder import UNPRUNED, restore_unpruned, unpruned_weights
from modalign.patches.storage import load_patch, save_patch
from modalign.patches.structure_patches import slice_along
from modalign.strict_json import read_object

PATCHES = "patches"
ORIGINALS = "originals.safetensors"
LOG = "log.jsonl"


@dataclass(frozen=True)
class FolderStatus:
    """The state of a patched folder.

    Attributes:
        folder: the model folder.
        stack: the patches applied, lowest first.
        problems: what is not as the log says; empty if all is well.
        interrupted: whether a change was begun and not ended.
    """

    folder: Path
    stack: tuple[Applied, ...]
    problems: tuple[str, ...] = ()
    interrupted: bool = False


class PatchedFolder:
    """One model folder with its weights, its originals and its log.

    Args:
        folder: where patches, originals and log are; a GGUF file or a hub name stands for the folder that
            it is read from.
        weights: where tensors are read; another folder's while a copy is being made.
    """

    def __init__(self, folder: Path, weights: FolderWeights | None = None) -> None:
        if weights is None:
            folder = read_from(folder)
            if not (folder / "config.json").is_file():
                raise UsageError(f"{folder} holds no model: it has no config.json")
        self.folder = folder
        self.weights = weights or FolderWeights(folder)
        self.log = Log(folder / PATCHES / LOG)

    # ---- reading -------------------------------------------------------------------------------

    def status(self) -> FolderStatus:
        """Return the patches applied, and whether the touched tensors are what the log says."""
        problems = [] if self.log.pending is None else ["a change was interrupted"]
        expected = {} if self.log.pending is not None else self.log.hashes()
        for name, sha256 in expected.items():
            if not sha256:
                continue  # a structure took it away
            if name not in self.weights.places:
                problems.append(f"{name} is gone from the weights")
            elif (found := tensor_hash(self.weights.read(name))) != sha256:
                problems.append(
                    f"{name} has the hash {found[:SHOWN]}, the log says {sha256[:SHOWN]}"
                )
        for entry in self.log.stack:
            if not (self.folder / PATCHES / entry.file).is_file():
                problems.append(f"the copy of the patch {entry.name!r} ({entry.file}) is gone")
        if self.structure is not None and not (self.folder / PATCHES / UNPRUNED).is_dir():
            problems.append(f"the unpruned files ({PATCHES}/{UNPRUNED}) are gone")
        return FolderStatus(
            self.folder, tuple(self.log.stack), tuple(problems), self.log.pending is not None
        )

    @property
    def structure(self) -> Applied | None:
        """The structure below all other patches, if there is one."""
        stack = self.log.stack
        return stack[0] if stack and stack[0].kind == "structure" else None

    def original(self, name: str) -> Tensor:
        """Return a tensor without any change; with a structure, as that left it."""
        path = self.folder / PATCHES / ORIGINALS
        if name not in self._held_originals():
            return self.weights.read(name)
        with opened(path) as file:
            found: Tensor = file.get_tensor(name)
        return found

    def find(self, reference: str) -> Applied:
        """Find the patch that a name, the beginning of a hash, or a file refers to."""
        stack = [(each.name, each.sha256) for each in self.log.stack]
        named = any(reference == name for name, _ in stack)
        wanted = reference if named or not Path(reference).is_file() else load_patch(reference)
        return self.log.stack[chosen(wanted, stack, str(self.folder))]

    def check_tokenizer(self, patch: PatchContent) -> None:
        """Refuse a patch for another tokenizer than the folder's."""
        if patch.header.tokenizer is None:
            return
        from transformers import AutoTokenizer  # imported here, as reading weights alone needs none

        from modalign.models.pretrained import read_pretrained

        try:
            tokenizer = read_pretrained(AutoTokenizer, self.folder, "tokenizer in")
        except UsageError as error:
            raise DataError(
                f"the patch {patch.header.name!r} names the tokenizer it was computed for: {error}"
            ) from error
        check_tokenizer(patch, tokenizer)

    def touched_by(self, patches: Sequence[PatchContent]) -> set[str]:
        """Return the tensors of the files that patches change, after checking that they fit."""
        return {name for _, entry in self._fitted(patches) for name in entry.tensors.values()}

    def fitted(
        self, patch: PatchContent, new: Sequence[PatchContent] = ()
    ) -> tuple[PatchContent, dict[str, str]]:
        """Return a patch that fits this model, with its tensors' names in the files.

        Args:
            patch: the patch to put on top.
            new: patches that will be applied before it.

        Returns:
            The patch itself or, on a pruned model, a patch for the unpruned one sliced along.

        Raises:
            DataError: it was made for another model, or changes what the structure removed.
        """
        where, own = str(self.folder), (self.weights.shapes, self.original)
        if self.structure is None:
            return patch, locate(patch.header, *own, where)
        unpruned = unpruned_weights(self.folder)
        before = (unpruned.shapes, unpruned.read)
        if patch.cuts:
            return patch, locate(patch.header, *before, where)
        try:
            return patch, locate(patch.header, *own, where)
        except DataError as error:
            try:
                names = locate(patch.header, *before, where)
            except DataError:
                raise error from None
        sliced = slice_along(
            patch, self._patch(self.structure), names, unpruned.read, self._below(patch, new)
        )
        return sliced, {name: name for name in sliced.changes}

    def _below(self, patch: PatchContent, new: Sequence[PatchContent]) -> list[str]:
        """Return the hashes that the patches below one have here, if they were sliced along."""
        present = [*(self._patch(each) for each in self.log.stack), *new]
        sliced = {each.header.sliced_from: patch_hash(each) for each in present}
        return [sliced.get(sha256, sha256) for sha256 in patch.header.after]

    def _fitted(self, patches: Sequence[PatchContent]) -> list[tuple[PatchContent, Applied]]:
        """Return new patches as they fit here, with their entries, after comparing every hash."""
        self._check_state()
        below = [(each.name, each.sha256) for each in self.log.stack]
        found: list[tuple[PatchContent, Applied]] = []
        for given in patches:
            patch, names = self.fitted(given, [each for each, _ in found])
            entry = entry_of(patch, names)
            check_order(patch, entry.sha256, below, str(self.folder))
            for own, name in names.items():
                self._check_tied(name, patch.header.base[own])
            found.append((patch, entry))
            below.append((entry.name, entry.sha256))
        return found

    def _check_state(self) -> None:
        problems = self.status().problems
        if problems:
            raise DataError(
                f"{self.folder} is not what its log says: {'; '.join(problems[:3])}. Something else "
                "wrote to it; make it again from the unpatched model"
            )

    def _check_tied(self, name: str, base: BaseTensor) -> None:
        """Refuse a change of an embedding that is also the output projection, unless it is for both."""
        tied = is_tied(self.weights, name, self.original)
        if tied and not base.tied:
            raise UsageError(
                f"{name} is both the input embedding and the output projection (tied weights): a "
                "patch of one would change the other; untie them first"
            )
        if base.tied and not tied:
            raise DataError(
                f"the patch takes {name} to be both input embedding and output projection; in "
                f"{self.folder} they are two tensors"
            )

    # ---- changing ------------------------------------------------------------------------------

    def apply(self, patches: Sequence[PatchContent]) -> None:
        """Apply patches on top."""
        if not patches:
            raise UsageError("name at least one patch")
        fitted = self._fitted(patches)
        (self.folder / PATCHES).mkdir(exist_ok=True)
        for patch, entry in fitted:
            save_patch(patch, self.folder / PATCHES / entry.file)
        entries = [entry for _, entry in fitted]
        self._change("apply", entries, [*self.log.stack, *entries])

    def remove(self, gone: Sequence[Applied]) -> None:
        """Remove patches."""
        if not gone:
            raise UsageError(f"{self.folder} carries no patch to remove")
        self._check_state()
        hashes = [each.sha256 for each in gone]
        present = [(self._patch(each), each.sha256) for each in self.log.stack]
        check_removable(hashes, present, str(self.folder))
        kept = [each for each in self.log.stack if each.sha256 not in hashes]
        structure = self.structure
        if structure is None or structure.sha256 not in hashes:
            self._change("remove", gone, kept)
            return
        if kept:
            raise DataError(
                f"the structure {structure.name!r} cannot be removed from {self.folder} alone: "
                f"{kept[0].name!r} was applied to the pruned model; remove both"
            )
        if len(gone) > 1:
            self._change("remove", [each for each in gone if each is not structure], [structure])
        self._restore(structure)

    def _restore(self, structure: Applied) -> None:
        """Put the unpruned files back; once the log says ``begun``, an interruption is completed later."""
        patch, unpruned = self._patch(structure), unpruned_weights(self.folder)
        for name, base in patch.header.base.items():
            if name not in unpruned.places or tensor_hash(unpruned.read(name)) != base.sha256:
                raise DataError(
                    f"{unpruned.folder} does not hold the {name} that was pruned; restore the files"
                )
        after = dict.fromkeys(filter(None, (cut.name for cut in patch.cuts.values())), "")
        after |= {name: base.sha256 for name, base in patch.header.base.items()}
        tensors = {}
        for name, sha256 in after.items():
            held = name in self.weights.places
            before = tensor_hash(self.weights.read(name)) if held else ""
            tensors[name] = TensorChange(before=before, after=sha256)
        self.log.begin("remove", [structure], [], tensors)
        self.recover()

    def _finish_restoring(self, pending: Event) -> None:
        restore_unpruned(self.folder)
        self.weights = FolderWeights(self.folder)
        self.log.end(pending.number, "done")
        self._tidy()

    def _change(
        self, action: Literal["apply", "remove"], subject: Sequence[Applied], stack: list[Applied]
    ) -> None:
        """Write the touched tensors as they are under another stack of patches."""
        touched = sorted(_touched(subject))
        before = {name: tensor_hash(self.weights.read(name)) for name in touched}
        self._keep_originals(_touched(stack))
        with self._rewritten(touched, stack) as (ready, after):
            tensors = {n: TensorChange(before=before[n], after=after[n]) for n in touched}
            self.log.begin(action, subject, stack, tensors)
            try:
                for part, place in ready.items():
                    part.replace(place)
            finally:  # whether or not all were replaced, the log decides: done, or undone
                self.weights = FolderWeights(self.folder)
                self.recover()
        if self.log.stack != stack:
            raise ModalignError(f"{self.folder}: what was written reads back differently; undone")
        self._tidy()

    def _rewritten(
        self, names: Sequence[str], stack: Sequence[Applied]
    ) -> AbstractContextManager[tuple[dict[Path, Path], dict[str, str]]]:
        """Write new files with these tensors as under a stack, see :meth:`FolderWeights.rewritten`."""
        patches = {each.sha256: self._patch(each) for each in stack if each.kind == "change"}

        def value(name: str) -> Tensor:
            found = [
                (patches[entry.sha256], own)
                for entry in stack
                if entry.kind == "change"
                for own, key in entry.tensors.items()
                if key == name
            ]
            if not found:
                return self.original(name)
            transposed = found[0][0].header.base[found[0][1]].transposed
            return changed(self.original(name), [p.changes[own] for p, own in found], transposed)

        return self.weights.rewritten(names, value, self.folder)

    def _patch(self, entry: Applied) -> PatchContent:
        patch = load_patch(self.folder / PATCHES / entry.file)
        if patch_hash(patch) != entry.sha256:
            raise DataError(
                f"{self.folder / PATCHES / entry.file} is not the patch that was applied "
                f"({entry.sha256[:SHOWN]}); restore the file"
            )
        return patch

    def _keep_originals(self, names: set[str]) -> None:
        """Add these tensors to the originals kept so far; they are written before any change."""
        held = self._held_originals()
        if not names <= held:
            self._write_originals(names | held)

    def _held_originals(self) -> set[str]:
        path = self.folder / PATCHES / ORIGINALS
        if not path.is_file():
            return set()
        with opened(path) as file:
            return set(file.keys())

    def _write_originals(self, names: set[str]) -> None:
        tensors = {name: self.original(name).clone() for name in sorted(names)}
        with replacing(self.folder / PATCHES / ORIGINALS) as file:
            save_file(tensors, file.name, {"format": "pt"})

    def recover(self) -> bool:
        """End a change that was begun: as done if all its tensors are there, else undone."""
        pending = self.log.pending
        if pending is None:
            return False
        if self.structure is not None and self.structure.sha256 in pending.patches.values():
            self._finish_restoring(pending)
            return True
        now_held = {name: tensor_hash(self.weights.read(name)) for name in pending.tensors}
        if all(now_held[name] == change.after for name, change in pending.tensors.items()):
            self.log.end(pending.number, "done")
            return True
        wrong = [n for n, change in pending.tensors.items() if now_held[n] != change.before]
        if wrong:
            with self._rewritten(wrong, self.log.stack) as (ready, after):
                if odd := [n for n in wrong if after[n] != pending.tensors[n].before]:
                    raise DataError(f"{self.folder}: {odd[0]} cannot be restored to what it was")
                for part, place in ready.items():
                    part.replace(place)
            self.weights = FolderWeights(self.folder)
        self.log.end(pending.number, "undone")
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Delete what no applied patch needs: copies, originals, unfinished files."""
        place = self.folder / PATCHES
        wanted = {entry.file for entry in self.log.stack}
        halves = [f for file in self.weights.files_of(self.weights.places)
                  for f in self.folder.glob(f".{file}.*{PART}")]  # fmt: skip
        for path in [*place.glob("*.safetensors"), *place.glob(f".*{PART}"), *halves]:
            if path.name != ORIGINALS and path.name not in wanted:
                path.unlink(missing_ok=True)
        if self.structure is None:
            shutil.rmtree(place / UNPRUNED, ignore_errors=True)
        names = _touched(self.log.stack)
        if not names:
            (place / ORIGINALS).unlink(missing_ok=True)
            return
        if self._held_originals() != names:
            self._write_originals(names)


def entry_of(patch: PatchContent, names: dict[str, str]) -> Applied:
    """Make the log's entry of a patch whose tensors have these names in the files."""
    sha256 = patch_hash(patch)
    return Applied(
        name=patch.header.name,
        sha256=sha256,
        file=f"{sha256[:16]}.safetensors",
        tensors=names,
        kind="structure" if patch.cuts else "change",
        time=now(),
    )


def _touched(entries: Sequence[Applied]) -> set[str]:
    """Return the tensors of the files whose values patches change."""
    return {name for each in entries if each.kind == "change" for name in each.tensors.values()}


def is_tied(weights: FolderWeights, name: str, read: Callable[[str], Tensor]) -> bool:
    """Return whether a tensor is both the input embedding and the output projection of a model.

    Args:
        weights: of the model.
        name: of the tensor.
        read: reads a tensor without patches.
    """
    shape = weights.places[name].shape
    if len(shape) != 2 or shape[0] not in _vocabulary_sizes(weights.folder):
        return False
    others = [n for n, place in weights.places.items() if place.shape == shape and n != name]
    own = tensor_hash(read(name))
    return not others or any(tensor_hash(read(each)) == own for each in others)


def _vocabulary_sizes(folder: Path) -> set[int]:
    """Return the vocabulary sizes that a configuration states, including those of its parts."""
    values = read_object(folder / "config.json")
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    return {part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)}
