"""Remove single edits from a patch, or keep only some, without the model.

A closed-form change stores what it was solved from, so leaving out an edit's columns and solving again
gives exactly the patch of the other edits. A low-rank change just loses the edit's columns.
"""

from __future__ import annotations

from collections.abc import Iterable

from modalign.errors import DataError, UsageError
from modalign.patches.header import PatchContent, label, with_history
from modalign.patches.patch import Patch

SHOWN_IDS = 20


def drop(patch: Patch, edits: str | Iterable[str]) -> Patch:
    """Return a patch without some of its edits.

    Args:
        patch: not changed.
        edits: the id of an edit, or several.

    Raises:
        UsageError: there is no such id, or no edit would be left.
        DataError: a change of the patch does not tell its edits apart.
    """
    gone = _positions(patch, edits)
    if len(gone) == len(patch.edits):
        raise UsageError(
            f"dropping these would leave no edit in {patch.header.name!r}; remove the patch instead"
        )
    dropped = [patch.edits[i] for i in sorted(gone)]
    words = ", ".join(f"{edit.id} ({edit.prompt!r} -> {edit.target!r})" for edit in dropped[:5])
    more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
    kept = [i for i in range(len(patch.edits)) if i not in gone]
    places = {old: new for new, old in enumerate(kept)}
    changes = {}
    for name, change in patch.changes.items():
        try:
            left = change.keeping(places, gone)
        except DataError as error:
            raise DataError(
                f"an edit cannot be taken out of {patch.header.name!r}: the change of {name} {error}"
            ) from error
        if left is not None:
            changes[name] = left
    left_edits = tuple(patch.edits[i] for i in kept)
    header = with_history(
        patch.header,
        f"dropped {words}{more} from {label(patch)}",
        base={name: patch.header.base[name] for name in changes},
        editing=patch.header.editing.model_copy(update={"edits": left_edits}),
    )
    return Patch(header, changes)


def keep(patch: Patch, edits: str | Iterable[str]) -> Patch:
    """Return a patch of only some of its edits, all others dropped.

    Raises:
        UsageError: there is no such id.
        DataError: a change of the patch does not tell its edits apart.
    """
    chosen = _positions(patch, edits)
    others = [edit.id for i, edit in enumerate(patch.edits) if i not in chosen]
    return drop(patch, others) if others else patch


def _positions(patch: PatchContent, edits: str | Iterable[str]) -> set[int]:
    wanted = [edits] if isinstance(edits, str) else list(edits)
    places = {edit.id: i for i, edit in enumerate(patch.edits)}
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
