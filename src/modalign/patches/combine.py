"""Make patches from patches: merge, scale or sum them with weights, or keep them together as a soup.

Patches with the same key statistics and settings are merged by one joint solve; for all others the
changes are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from modalign.errors import DataError, UsageError
from modalign.patches.changes import Change, DenseChange, LowRankChange, SolvedChange
from modalign.patches.header import (
    SHOWN,
    EditingOrigin,
    EditRecord,
    Parent,
    label,
    patch_hash,
    with_history,
)
from modalign.patches.patch import Patch
from modalign.patches.weighted import WeightedChange

Terms = Sequence[tuple[float, Change]]  # one tensor's changes, each with its weight


def merge(
    patches: Sequence[Patch], *, name: str | None = None, allow_conflicts: bool = False
) -> Patch:
    """Join patches of one base model into one.

    Patches with the same covariance, method and settings are solved together, as if all their edits had
    been given at once; others are added up. ``history`` records which was done, and why.

    Args:
        patches: two or more, in any order.
        name: of the result; by default their names, joined.
        allow_conflicts: also join edits that give one prompt different targets.

    Raises:
        UsageError: fewer than two patches, or one twice.
        DataError: they have different bases or tokenizers, or their edits contradict each other.
    """
    if len(patches) < 2 or len({patch_hash(each) for each in patches}) != len(patches):
        raise UsageError("merge takes two or more different patches")
    _check_alike(patches)
    if not allow_conflicts:
        _check_conflicts(patches)
    obstacle = _obstacle(patches)
    join = _added if obstacle else _solved_together
    how = f"by adding up their changes ({obstacle})" if obstacle else "by a joint solve"
    done = f"merged {', '.join(map(label, patches))} {how}"
    ones = [1.0] * len(patches)
    return _joined(patches, ones, lambda terms: join([c for _, c in terms]), done, name)


def scale(patch: Patch, factor: float, *, name: str | None = None) -> Patch:
    """Multiply a patch's changes by ``factor``, keeping the form of each.

    Raises:
        UsageError: the factor is not a finite number.
    """
    _check_weights([factor], 1)
    _check_alike([patch])
    header = with_history(
        patch.header,
        f"scaled {label(patch)} by {factor:g}",
        name=name or patch.header.name,
        parents=tuple(
            each.model_copy(update={"weight": factor * each.weight})
            for each in patch.header.parents
        ),
    )
    return Patch(header, {name: each.scaled(factor) for name, each in patch.changes.items()})


def add(patches: Sequence[Patch], weights: Sequence[float], *, name: str | None = None) -> Patch:
    """Sum patches of one base model, each times its weight, into one change per tensor.

    A sum of factors stays factored if that is smaller than the matrix. Contradicting edits are added
    up like any others.

    Args:
        patches: one or more, in any order.
        weights: one for each, of any sign.
        name: of the result; by default their names, joined.

    Raises:
        UsageError: weights that are not finite or not as many as patches.
        DataError: patches of different bases or tokenizers.
    """
    _check_weights(weights, len(patches))

    def sum_of(terms: Terms) -> Change:
        return _added([change.scaled(weight) for weight, change in terms])

    done = f"added up {_weighted_labels(patches, weights)}"
    return _joined(patches, weights, sum_of, done, name)


def soup(patches: Sequence[Patch], weights: Sequence[float], *, name: str | None = None) -> Patch:
    """Make a patch of kind ``soup``, which holds other patches with weights and sums them when applied.

    The parents stay separate: their edits can still be dropped one by one, and their hashes and weights
    are in the header.

    Args:
        patches: the parents, of one base model.
        weights: one for each, of any sign.
        name: of the result; by default their names, joined.

    Raises:
        UsageError: weights that are not finite or not as many as patches.
        DataError: parents of different bases or tokenizers, or one that is a soup itself.
    """
    _check_weights(weights, len(patches))
    if nested := [each for each in patches if each.header.kind == "soup"]:
        raise DataError(f"{label(nested[0])} is a soup itself; give its parents, or add them up")
    parents = tuple(
        Parent(name=each.header.name, sha256=patch_hash(each), weight=weight)
        for each, weight in zip(patches, weights, strict=True)
    )
    done = f"made a soup of {_weighted_labels(patches, weights)}"
    return _joined(
        patches, weights, lambda terms: WeightedChange(tuple(terms)), done, name,
        kind="soup", format_version=2, parents=parents,
    )  # fmt: skip


def _check_weights(weights: Sequence[float], count: int) -> None:
    if not count or len(weights) != count:
        raise UsageError(f"give each patch its weight: {count} patches, {len(weights)} weights")
    for weight in weights:
        if not math.isfinite(weight):
            raise UsageError(f"the weight {weight} is not a finite number")


def _weighted_labels(patches: Sequence[Patch], weights: Sequence[float]) -> str:
    return ", ".join(f"{w:g} x {label(p)}" for p, w in zip(patches, weights, strict=True))


def _joined(
    patches: Sequence[Patch],
    weights: Sequence[float],
    join: Callable[[Terms], Change],
    done: str,
    name: str | None,
    **update: Any,
) -> Patch:
    """Make one patch of several, keeping what their headers agree on.

    Args:
        patches: of one base.
        weights: of each.
        join: turns a tensor's weighted changes into one change.
        done: for the history.
        name: of the result.
        update: further fields of the header.
    """
    after = _check_alike(patches)
    edits, places = _joined_edits(patches)
    terms: dict[str, list[tuple[float, Change]]] = {}
    for each, weight, place in zip(patches, weights, places, strict=True):
        for tensor, change in each.changes.items():
            terms.setdefault(tensor, []).append((weight, change.keeping(place) or change))
    headers = [each.header for each in patches]
    first, origins = headers[0], [each.editing for each in headers]
    same_settings = all(h.settings == first.settings for h in headers)

    def agreed(values: list[Any], otherwise: Any) -> Any:
        return values[0] if all(value == values[0] for value in values) else otherwise

    fields = {
        "name": name or "+".join(h.name for h in headers),
        "kind": "delta",
        "format_version": max(h.format_version for h in headers),
        "base": {tensor: base for h in headers for tensor, base in h.base.items()},
        "after": after,
        "method": agreed([h.method for h in headers], "merged"),
        "settings": first.settings if same_settings else {h.name: h.settings for h in headers},
        "seed": agreed([h.seed for h in headers], None),
        "tokenizer": next((h.tokenizer for h in headers if h.tokenizer is not None), None),
        "history": tuple(line for h in headers for line in h.history),
        "editing": EditingOrigin(
            covariance=agreed([each.covariance for each in origins], None),
            contexts=agreed([each.contexts for each in origins], ()),
            edits=edits,
        ),
        "parents": (),
    }
    header = with_history(first, done, **{**fields, **update})
    return Patch(header, {tensor: join(found) for tensor, found in terms.items()})


def _check_alike(patches: Sequence[Patch]) -> tuple[str, ...]:
    """Refuse patches of different bases; return the patches that must be below the result."""
    first, *others = patches
    if cut := [each for each in patches if each.cuts]:
        raise DataError(f"{label(cut[0])} is a structure: it has no changes to add up")
    bases = dict(first.header.base)
    for other in others:
        for name, base in other.header.base.items():
            if bases.setdefault(name, base) != base:
                raise DataError(
                    f"{label(first)} and {label(other)} were made for different models: they "
                    f"expect other values of {name}"
                )
        if None not in (first.header.tokenizer, other.header.tokenizer) and (
            first.header.tokenizer != other.header.tokenizer
        ):
            raise DataError(f"{label(first)} and {label(other)} are for different tokenizers")
    hashes = [patch_hash(each) for each in patches]
    below = [tuple(h for h in each.header.after if h not in hashes) for each in patches]
    if len(set(below)) > 1:
        raise DataError(
            "these patches were computed on top of different patches: "
            + "; ".join(
                f"{label(p)} on {', '.join(h[:SHOWN] for h in b) or 'none'}"
                for p, b in zip(patches, below, strict=True)
            )
        )
    return below[0]


def _check_conflicts(patches: Sequence[Patch]) -> None:
    seen: dict[tuple[str, ...], tuple[Patch, EditRecord]] = {}
    for patch in patches:
        for edit in patch.edits:
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
    """Say why these patches cannot be solved together; None if they can."""
    headers = [each.header for each in patches]
    statistics = {header.editing.covariance for header in headers}
    if not all(change.form == "solved" for p in patches for change in p.changes.values()):
        return "not all of them are closed-form"
    if len(statistics) != 1 or None in statistics:
        return "they were solved with different key statistics"
    if any((h.method, h.settings) != (headers[0].method, headers[0].settings) for h in headers):
        return "their methods or settings differ"
    if any(h.after != headers[0].after for h in headers):
        return "one was computed on top of another"
    return None


def _joined_edits(patches: Sequence[Patch]) -> tuple[tuple[EditRecord, ...], list[dict[int, int]]]:
    """Join all edits, making ids unique by their patch's name; also map old positions to new, per patch."""
    counts: dict[str, int] = {}
    for each in patches:
        for edit in each.edits:
            counts[edit.id] = counts.get(edit.id, 0) + 1
    taken: set[str] = set()
    edits: list[EditRecord] = []
    places = []
    for each in patches:
        places.append({i: len(edits) + i for i in range(len(each.edits))})
        for edit in each.edits:
            wanted = edit.id if counts[edit.id] == 1 else f"{each.header.name}/{edit.id}"
            while wanted in taken:
                wanted += "'"
            taken.add(wanted)
            edits.append(edit.model_copy(update={"id": wanted}))
    return tuple(edits), places


def _added(changes: Sequence[Change]) -> Change:
    """Sum changes, with factors side by side if that is smaller than the matrix."""
    if len(changes) == 1:
        return changes[0]
    shape = changes[0].shape
    pairs = [each.low_rank() for each in changes]
    rank = sum(each.left.shape[1] for each in pairs if each is not None)
    if None in pairs or rank * sum(shape) >= shape[0] * shape[1]:
        return DenseChange(WeightedChange(tuple((1.0, each) for each in changes)).delta())
    return LowRankChange.beside([each for each in pairs if each is not None])


def _solved_together(changes: Sequence[Change]) -> SolvedChange:
    """Put all columns side by side; a key that several patches protect is protected once."""
    keys, dual, residuals, edits = [], [], [], []
    protected: set[bytes] = set()
    for change in changes:
        assert isinstance(change, SolvedChange)  # patches without an obstacle hold no others
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
