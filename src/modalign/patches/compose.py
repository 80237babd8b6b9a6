"""Patches from patches: single edits taken out or kept, several patches joined.

A closed-form change knows what it was solved from, so leaving out an edit's columns and solving again
gives exactly the patch of the other edits, and patches of the same key statistics and settings are
solved together. Everything else is the sum of its changes.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modalign.errors import DataError, UsageError
from modalign.patches.hashing import SHOWN, patch_hash
from modalign.patches.patch import (
    Change,
    DenseChange,
    EditRecord,
    LowRankChange,
    Patch,
    PatchHeader,
    SolvedChange,
)

SHOWN_IDS = 20


def drop(patch: Patch, edits: str | Iterable[str]) -> Patch:
    """Take edits out of a patch, without the model.

    A solved change is solved again over the remaining keys; a low-rank one loses the edit's columns.

    Args:
        patch: stays as it is.
        edits: the id of an edit, or several.

    Raises:
        UsageError: no such id, or no edit would be left.
        DataError: a change of the patch does not tell its edits apart.
    """
    gone = _positions(patch, edits)
    if len(gone) == len(patch.header.edits):
        raise UsageError(
            f"dropping these would leave no edit in {patch.header.name!r}; remove the patch instead"
        )
    for name, change in patch.changes.items():
        _check_separable(patch, name, change, gone)
    kept = [i for i in range(len(patch.header.edits)) if i not in gone]
    dropped = [patch.header.edits[i] for i in sorted(gone)]
    words = ", ".join(f"{edit.id} ({edit.prompt!r} -> {edit.target!r})" for edit in dropped[:5])
    more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
    return _selected(patch, kept, f"dropped {words}{more} from {_label(patch)}")


def keep(patch: Patch, edits: str | Iterable[str]) -> Patch:
    """The patch of some of its edits alone: all others dropped.

    Raises:
        UsageError: no such id.
        DataError: a change of the patch does not tell its edits apart.
    """
    chosen = _positions(patch, edits)
    others = [edit.id for i, edit in enumerate(patch.header.edits) if i not in chosen]
    return drop(patch, others) if others else patch


def _positions(patch: Patch, edits: str | Iterable[str]) -> set[int]:
    wanted = [edits] if isinstance(edits, str) else list(edits)
    places = {edit.id: i for i, edit in enumerate(patch.header.edits)}
    unknown = [each for each in wanted if each not in places]
    if unknown:
        known = ", ".join(list(places)[:SHOWN_IDS]) or "none"
        more = f" and {len(places) - SHOWN_IDS} more" if len(places) > SHOWN_IDS else ""
        raise UsageError(
            f"the patch {patch.header.name!r} has no edit {unknown[0]!r}; it has {known}{more}"
        )
    if not wanted:
        raise UsageError("name at least one edit")
    return {places[each] for each in wanted}


def _check_separable(patch: Patch, name: str, change: Change, gone: set[int]) -> None:
    where = f"an edit cannot be taken out of {patch.header.name!r}: the change of {name}"
    if isinstance(change, DenseChange):
        raise DataError(
            f"{where} is dense ({patch.header.method}), nothing in it belongs to one edit; compute "
            "the patch again without that edit"
        )
    if isinstance(change, LowRankChange) and -1 in change.edits and not gone <= set(change.edits):
        raise DataError(
            f"{where} is a sum that does not keep its edits apart; drop the edit from the patch it "
            "came from and merge again"
        )


def _selected(patch: Patch, kept: list[int], done: str) -> Patch:
    """The patch of the edits at these positions, other columns of edits left out."""
    renumbered = {old: new for new, old in enumerate(kept)} | {-1: -1}
    changes: dict[str, Change] = {}
    for name, change in patch.changes.items():
        if isinstance(change, DenseChange):  # refused before
            continue
        columns = [i for i, edit in enumerate(change.edits) if edit in renumbered]
        own = tuple(renumbered[change.edits[i]] for i in columns)
        if all(edit == -1 for edit in own) and _is_nothing(change, columns):
            continue
        changes[name] = _columns(change, columns, own)
    header = patch.header.model_copy(
        update={
            "base": {name: patch.header.base[name] for name in changes},
            "edits": tuple(patch.header.edits[i] for i in kept),
            "history": (*patch.header.history, done),
            "created": _now(),
        }
    )
    return Patch(header, changes)


def _is_nothing(change: SolvedChange | LowRankChange, columns: list[int]) -> bool:
    """Whether a change's columns of no edit change nothing by themselves (protected keys do not)."""
    values = change.residuals if isinstance(change, SolvedChange) else change.left
    return not bool(values[:, columns].any())


def _columns(
    change: SolvedChange | LowRankChange, columns: list[int], edits: tuple[int, ...]
) -> Change:
    if isinstance(change, SolvedChange):
        return SolvedChange(
            change.keys[:, columns], change.dual[:, columns], change.residuals[:, columns], edits
        )
    return LowRankChange(change.left[:, columns], change.right[:, columns], edits)


def merge(
    patches: Sequence[Patch], *, name: str | None = None, allow_conflicts: bool = False
) -> Patch:
    """Join patches of one base model into one.

    Patches of the same covariance, method and settings are solved together, as if all their edits had
    been given at once; others are added up. ``history`` says which it was, and why.

    Args:
        patches: two or more, in any order.
        name: of the result; their names joined by default.
        allow_conflicts: also join edits that give one prompt different targets.

    Raises:
        UsageError: fewer than two patches, or one twice.
        DataError: of different bases or tokenizers, or their edits contradict each other.
    """
    labels = [_label(each) for each in patches]
    if len(patches) < 2 or len(set(labels)) != len(labels):
        raise UsageError("merge takes two or more different patches")
    after = _check_mergeable(patches)
    if not allow_conflicts:
        _check_conflicts(patches)
    obstacle = _obstacle(patches)
    edits, places = _joined_edits(patches)
    parts: dict[str, list[tuple[Change, dict[int, int]]]] = {}
    for each, place in zip(patches, places, strict=True):
        for tensor, change in each.changes.items():
            parts.setdefault(tensor, []).append((change, place))
    changes = {tensor: _joined(found, obstacle is None) for tensor, found in parts.items()}
    how = "by a joint solve" if obstacle is None else f"by adding up their changes ({obstacle})"
    history = [line for each in patches for line in each.header.history]
    header = patches[0].header.model_copy(
        update={
            **_joined_settings(patches),
            "name": name or "+".join(each.header.name for each in patches),
            "base": {tensor: base for each in patches for tensor, base in each.header.base.items()},
            "after": after,
            "edits": edits,
            "history": (*history, f"merged {', '.join(labels)} {how}"),
            "created": _now(),
        }
    )
    return Patch(header, changes)


def _check_mergeable(patches: Sequence[Patch]) -> tuple[str, ...]:
    """Refuse patches of different bases; the patches that must be below the result."""
    first, *others = patches
    bases = dict(first.header.base)
    for other in others:
        for name, base in other.header.base.items():
            if bases.setdefault(name, base) != base:
                raise DataError(
                    f"{_label(first)} and {_label(other)} were made for different models: they "
                    f"expect other values of {name}"
                )
        if None not in (first.header.tokenizer, other.header.tokenizer) and (
            first.header.tokenizer != other.header.tokenizer
        ):
            raise DataError(f"{_label(first)} and {_label(other)} are for different tokenizers")
    hashes = [patch_hash(each) for each in patches]
    below = [tuple(h for h in each.header.after if h not in hashes) for each in patches]
    if len(set(below)) > 1:
        raise DataError(
            "these patches were computed on top of different patches: "
            + "; ".join(
                f"{_label(p)} on {', '.join(h[:SHOWN] for h in b) or 'none'}"
                for p, b in zip(patches, below, strict=True)
            )
        )
    return below[0]


def _check_conflicts(patches: Sequence[Patch]) -> None:
    seen: dict[tuple[str, ...], tuple[Patch, EditRecord]] = {}
    for patch in patches:
        for edit in patch.header.edits:
            key = (_plain(edit.subject), _plain(edit.prompt), edit.image or "")
            other, before = seen.setdefault(key, (patch, edit))
            if _plain(before.target) != _plain(edit.target):
                raise DataError(
                    f"conflicting edits of {edit.prompt!r}: {before.id} of {other.header.name!r} "
                    f"says {before.target!r}, {edit.id} of {patch.header.name!r} says "
                    f"{edit.target!r}; drop one of them, or allow conflicts"
                )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _obstacle(patches: Sequence[Patch]) -> str | None:
    """Why these patches cannot be solved together; None if they can."""
    headers = [each.header for each in patches]
    if not all(isinstance(change, SolvedChange) for p in patches for change in p.changes.values()):
        return "not all of them are closed-form"
    if headers[0].covariance is None or any(h.covariance != headers[0].covariance for h in headers):
        return "they were solved with different key statistics"
    if any((h.method, h.settings) != (headers[0].method, headers[0].settings) for h in headers):
        return "their methods or settings differ"
    if any(h.after != headers[0].after for h in headers):
        return "one was computed on top of another"
    return None


def _joined_edits(patches: Sequence[Patch]) -> tuple[tuple[EditRecord, ...], list[dict[int, int]]]:
    """All edits, ids made unique by their patch's name; for each patch old position -> new."""
    counts: dict[str, int] = {}
    for each in patches:
        for edit in each.header.edits:
            counts[edit.id] = counts.get(edit.id, 0) + 1
    taken: set[str] = set()
    edits: list[EditRecord] = []
    places = []
    for each in patches:
        places.append({i: len(edits) + i for i in range(len(each.header.edits))} | {-1: -1})
        for edit in each.header.edits:
            wanted = edit.id if counts[edit.id] == 1 else f"{each.header.name}/{edit.id}"
            while wanted in taken:
                wanted += "'"
            taken.add(wanted)
            edits.append(edit.model_copy(update={"id": wanted}))
    return tuple(edits), places


def _joined(parts: list[tuple[Change, dict[int, int]]], jointly: bool) -> Change:
    """One tensor's change from those of several patches."""
    if len(parts) == 1:
        return _renumbered(*parts[0])
    if jointly:
        return _solved_together([_renumbered(*part) for part in parts])
    shape = parts[0][0].shape
    factored = [_factored(*part) for part in parts]
    if any(each is None for each in factored):
        return _total(parts)
    pairs = [each for each in factored if each is not None]
    rank = sum(each.left.shape[1] for each in pairs)
    if rank * sum(shape) >= shape[0] * shape[1]:
        return _total(parts)
    return LowRankChange(
        torch.cat([each.left for each in pairs], dim=1),
        torch.cat([each.right for each in pairs], dim=1),
        tuple(edit for each in pairs for edit in each.edits),
    )


def _solved_together(changes: Sequence[Change]) -> SolvedChange:
    """All columns side by side; a key that several patches protect is protected once."""
    keys, dual, residuals, edits = [], [], [], []
    protected: set[bytes] = set()
    for change in changes:
        assert isinstance(change, SolvedChange)
        marks = [change.keys[:, i].numpy().tobytes() for i in range(len(change.edits))]
        kept = [i for i, e in enumerate(change.edits) if e != -1 or marks[i] not in protected]
        protected |= {mark for mark, edit in zip(marks, change.edits, strict=True) if edit == -1}
        keys.append(change.keys[:, kept])
        dual.append(change.dual[:, kept])
        residuals.append(change.residuals[:, kept])
        edits += [change.edits[i] for i in kept]
    return SolvedChange(
        torch.cat(keys, 1), torch.cat(dual, 1), torch.cat(residuals, 1), tuple(edits)
    )


def _renumbered(change: Change, places: dict[int, int]) -> Change:
    if isinstance(change, DenseChange):
        return change
    return replace(change, edits=tuple(places[edit] for edit in change.edits))


def _factored(change: Change, places: dict[int, int]) -> LowRankChange | None:
    """A change as factors. A solve couples its edits, so its columns are of no edit alone."""
    if isinstance(change, DenseChange):
        return None
    left, right = change.factors()
    known = isinstance(change, LowRankChange)
    return LowRankChange(left, right, tuple(places[e] if known else -1 for e in change.edits))


def _total(parts: list[tuple[Change, dict[int, int]]]) -> DenseChange:
    total: Tensor = sum((change.delta().double() for change, _ in parts), torch.zeros(()).double())
    return DenseChange(total)


def _joined_settings(patches: Sequence[Patch]) -> dict[str, Any]:
    """Fields that stay where all patches agree on them, and say so where they do not."""
    headers: list[PatchHeader] = [each.header for each in patches]
    first = headers[0]
    same_settings = all(h.settings == first.settings for h in headers)
    tokenizers = [h.tokenizer for h in headers if h.tokenizer is not None]
    return {
        "method": first.method if all(h.method == first.method for h in headers) else "merged",
        "settings": first.settings if same_settings else {h.name: h.settings for h in headers},
        "covariance": first.covariance
        if all(h.covariance == first.covariance for h in headers)
        else None,
        "contexts": first.contexts if all(h.contexts == first.contexts for h in headers) else (),
        "seed": first.seed if all(h.seed == first.seed for h in headers) else None,
        "tokenizer": tokenizers[0] if tokenizers else None,
    }


def _label(patch: Patch) -> str:
    return f"{patch.header.name} ({patch_hash(patch)[:SHOWN]})"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
