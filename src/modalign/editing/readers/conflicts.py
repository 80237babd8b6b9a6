"""Find edits that contradict or repeat each other: one fact with two answers, or twice with the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modalign.editing.edits import Edit

Fact = tuple[str, str, str | None]


def fact_of(edit: Edit) -> Fact:
    """Return what two edits must share to be about the same fact: subject, relation and picture."""
    return edit.subject, edit.relation, edit.image


def conflicts(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """Yield (first, later) for every fact that is given another target later."""
    first: dict[Fact, Edit] = {}
    for edit in edits:
        earlier = first.setdefault(fact_of(edit), edit)
        if earlier.target != edit.target:
            yield earlier, edit


def repetitions(edits: Sequence[Edit]) -> Iterator[tuple[Edit, Edit]]:
    """Yield (first, later) for every edit that occurs twice."""
    first: dict[tuple[Fact, str], Edit] = {}
    for edit in edits:
        earlier = first.setdefault((fact_of(edit), edit.target), edit)
        if earlier is not edit:
            yield earlier, edit


def conflict_free(edits: Sequence[Edit]) -> tuple[list[Edit], int]:
    """Drop edits whose fact an earlier one changes differently; also return how many were dropped.

    CounterFact itself holds such pairs; once all are written, only one of each pair could hold.
    """
    out = {id(later) for _, later in conflicts(edits)}
    return [edit for edit in edits if id(edit) not in out], len(out)
