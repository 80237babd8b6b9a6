"""Every edit before and after, as lines that unfold."""

from __future__ import annotations

from modalign.editing.benchmarks.rows import Answer
from modalign.editing.benchmarks.scores import succeeded
from modalign.editing.compare.report import view
from modalign.editing.compare.results import EditComparison, Mode, TableRow
from modalign.pages.parts import Cell, Entry, Row, Table, Tag


def entries_of(comparison: EditComparison) -> tuple[list[Entry], dict[str, list[str]]]:
    """Return the first edits of the table, and the facets they are filtered by."""
    shown = comparison.table[: view.SHOWN_EDITS]
    facets: dict[str, list[str]] = {
        "Method": [info.title for info in comparison.methods],
        "Mode": list(comparison.modes),
        "Outcome": list(view.STATUS_COLOURS),
    }
    return [_entry(comparison, row, number) for number, row in enumerate(shown)], facets


def _entry(comparison: EditComparison, row: TableRow, number: int) -> Entry:
    truth = f", before: {row.truth}" if row.truth else ""
    tags: dict[str, list[Tag]] = {}
    for each in row.after:
        title = comparison.title_of(each.method)
        text = title if each.status == "done" else f"{title}: {each.status}"
        facets = {"Method": title, "Mode": each.mode, "Outcome": each.status}
        hint = f"{each.status}{': ' if each.reason else ''}{each.reason}"
        tags.setdefault(each.mode, []).append(
            Tag(text, view.STATUS_COLOURS[each.status], facets, hint)
        )
    failed = [
        f"{comparison.title_of(a.method)}, {a.mode}: {a.status}; {a.reason}"
        for a in row.after
        if a.status != "done"
    ]
    tables = [_answers(comparison, row, mode, number) for mode in comparison.modes]
    title = f"{row.prompts[0].prompt} {row.target}"
    return Entry(title, f"{row.id}{truth}", view.search_text(row), tags, failed, tables)


def _answers(comparison: EditComparison, row: TableRow, mode: Mode, number: int) -> Table:
    """Return what each model says to the prompts of an edit."""
    mine = [each for each in row.after if each.mode == mode]
    rows = [
        Row(
            [
                Cell(prompt.prompt, prompt.kind),
                Cell(prompt.wanted),
                _said(comparison, prompt.before, prompt.kind),
                *(_said(comparison, each.answers[place], prompt.kind) for each in mine),
            ]
        )
        for place, prompt in enumerate(row.prompts)
    ]
    headings = ["Asked", "Wanted", "Before", *(comparison.title_of(each.method) for each in mine)]
    caption = f"{mode.capitalize()}, {row.id}"
    return Table(f"edit-{number}-{mode}", caption, f"/table/{number}", headings, rows)


def _said(comparison: EditComparison, answer: Answer, kind: str) -> Cell:
    right = succeeded(comparison.task, answer)
    words = view.said(answer)
    return Cell(words, view.probability(answer, kind), tone="right" if right else "wrong")
