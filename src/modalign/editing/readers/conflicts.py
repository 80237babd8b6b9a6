"""What edits do to each other: the same fact with two answers, or twice with the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modalign.editing.edits import Edit

Fact = tuple[str, str, str | None]


def fact_of(edit: Edit) -> Fact:
    """What two edits must share to be about the same fact: subject, relation and picture."""
    return edit.subject, edit.relation, edit.image


def conflicts(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """(first, later) of every fact that gets another target later."""
    first: dict[Fact, Edit] = {}
    for edit in edits:
        earlier = first.setdefault(fact_of(edit), edit)
        if earlier.target != edit.target:
            yield earlier, edit


def repetitions(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """(first, later) of every edit that comes twice."""
    first: dict[tuple[Fact, str], Edit] = {}
    for edit in edits:
        earlier = first.setdefault((fact_of(edit), edit.target), edit)
        if earlier is not edit:
            yield earlier, edit


def conflict_free(edits: Sequence[Edit]) -> tuple[list[Edit], int]:
    """The edits without those whose fact an earlier one changes otherwise, and how many were left out.

    CounterFact itself holds such pairs; only the first of each can be judged after all are written.
    """
    out = {id(later) for _, later in conflicts(edits)}
    return [edit for edit in edits if id(edit) not in out], len(out)
