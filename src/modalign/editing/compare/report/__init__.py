"""The report of an edit comparison: report.json, its schema, report.md and report.html.

The JSON file is the report; the other two are renderings of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from modalign.editing.compare.report import view
from modalign.editing.compare.report.entries import entries_of
from modalign.editing.compare.report.scores import kinds, score_figure
from modalign.editing.compare.results import EditComparison, MethodPoint, Mode, ScoreDifference
from modalign.numbers import words as fmt
from modalign.pages.figures import Chart, Point, Series
from modalign.pages.parts import (
    Cell,
    Entries,
    Figure,
    Part,
    Quantity,
    Row,
    Section,
    Table,
    Words,
    tabulate,
    text_rows,
)
from modalign.pages.report import Report

LISTED = 50  # failed edits and neighbours; report.json holds all
STATUSES = {status: Series(status, number) for status, number in view.STATUS_COLOURS.items()}


def report_of(comparison: EditComparison) -> Report:
    """Return the report with all sections that have something to show."""
    c = comparison
    largest = view.edits(c.sizes[-1])
    meanings = "; ".join(f"{name}: {view.MEANINGS[name]}" for name in (c.headline, *c.parts))
    found = [words for mode in c.modes if (words := view.headline_pair(c, mode))]
    sections = [
        Section(
            "found",
            "What was found",
            _PROTOCOL,
            [Words("pairs", "", "/differences", found, "list")],
        ),
        Section(
            "scores",
            "Scores against the number of edits",
            f"{meanings}. Free: edited prompts answered with the target when the model writes freely.",
            [score_figure(c, mode) for mode in c.modes],
        ),
        Section(
            "differences",
            "Differences",
            f"In {c.headline}, on the same edits, with records resampled jointly. P-values are corrected for "
            "the number of pairs (Holm). “No difference found” does not mean “equal”: more edits might show one.",
            _differences(c),
        ),
        Section("statuses", "How the edits went", _STATUSES, _statuses(c)),
        Section(
            "edits",
            f"Every edit before and after, at {view.edits(c.table_size or 0)}",
            "The first draw. Open an edit for its prompts: what each model says"
            f"{' when it writes freely' if c.setting.generate else ' (likeliest tokens)'}, and the "
            "probability of the wanted answer. ✓ and ✗ are the score's own judgement. At most "
            f"{view.SHOWN_EDITS} of {len(c.table)} are listed; report.json holds all.",
            [Entries("every-edit", "Every edit", "/table", *entries_of(c))] if c.table else [],
        ),
        Section(
            "neighbours",
            f"Worst neighbours at {largest}",
            "Questions that no edit was about and whose right answer lost the most probability; the same "
            "number for every method.",
            _worst(c),
        ),
        Section(
            "drift",
            "Drift on held-out text",
            "How far the edited model is from the unedited one on other text: KL(edited || unedited) of the "
            "next token, how often both have the same first choice, and the perplexity.",
            _drift(c),
        ),
        Section("cost", "Time and memory", _COSTS, _costs(c, largest)),
        Section("again", "To run it again", "", _setting(c)),
    ]
    return Report(
        "Comparison of editing methods",
        f"{len(c.methods)} methods, {', '.join(map(str, c.sizes))} edits of {c.edits} on {c.model}; {c.task}; "
        f"{c.setting.finished}",
        [section for section in sections if section.parts],
        f"Every figure is in report.json. Made by modalign {c.setting.versions.get('modalign', '')}.",
        c,
    )


_PROTOCOL = (
    "Teacher-forced, times 100, with 95 % bootstrap intervals over edits; every method got the same edits. No "
    "interval covers another training of the model or another text for the key statistics."
)
_STATUSES = "; ".join(f"{status}: {words}" for status, words in view.STATUS_WORDS.items()) + "."
_COSTS = (
    "Values are optimised once per edit and kept; what one method took from another's is charged to both. "
    "Evaluation is not charged. Memory is the process's whole peak while patches were computed (on a GPU the "
    "device's), libraries and model included."
)


def _columns(comparison: EditComparison) -> tuple[Quantity, Quantity, Quantity]:
    """Return the columns for a row's mode, number of edits and method."""
    marks = kinds(comparison)
    return (
        Quantity("Mode", "mode"),
        Quantity("Edits", lambda row: Cell(f"{row.size:,}", key=row.size)),
        Quantity(
            "Method",
            lambda row: Cell(
                marks[row.method].name, key=marks[row.method].name, mark=marks[row.method]
            ),
        ),
    )


def _differences(comparison: EditComparison) -> list[Table]:
    """Return a table per mode and size; the largest size of the first mode is open."""
    tables: list[Table] = []
    for mode in comparison.modes:
        for size in reversed(comparison.sizes):
            pairs = view.differences_at(comparison, mode, size)
            if pairs:
                parts = [view.differences_at(comparison, mode, size, p) for p in comparison.parts]
                rows = [
                    _pair(comparison, found, own)
                    for found, own in zip(pairs, zip(*parts, strict=True), strict=True)
                ]
                columns = [f"in {part}" for part in comparison.parts]
                headings = [
                    "First",
                    "Second",
                    "First minus second",
                    *columns,
                    "n",
                    "p (Holm)",
                    "Verdict",
                ]
                caption = f"{mode.capitalize()}, {view.edits(size)}"
                name = f"differences-{mode}-{size}"
                folded = bool(tables)
                tables.append(Table(name, caption, "/differences", headings, rows, folded=folded))
    return tables


def _pair(
    comparison: EditComparison, found: ScoreDifference, parts: Iterable[ScoreDifference]
) -> Row:
    return Row(
        [
            Cell(comparison.title_of(found.first)),
            Cell(comparison.title_of(found.second)),
            Cell(view.gap(found), key=found.value),
            *(Cell(view.signed(own.value), key=own.value, hint=view.gap(own)) for own in parts),
            Cell(str(found.n), key=found.n),
            Cell(fmt.p_value(found.p_holm), key=found.p_holm),
            Cell(view.verdict(comparison, found)),
        ]
    )


def _statuses(comparison: EditComparison) -> list[Part]:
    """Show the shares of outcomes, the edits that failed, and the cells without a result."""
    parts: list[Part] = [_outcomes(comparison, mode) for mode in comparison.modes]
    rows = [
        Row([*map(Cell, (row.id, row.prompts[0].prompt, row.target, each.mode)),
             Cell(comparison.title_of(each.method)), Cell(each.status), Cell(each.reason)])
        for row in comparison.table
        for each in row.after
        if each.status != "done"
    ]  # fmt: skip
    if rows and comparison.table_size is not None:
        headings = ["Id", "Prompt", "Target", "Mode", "Method", "Status", "Reason"]
        caption = f"Failed edits at {view.edits(comparison.table_size)}, first draw"
        if len(rows) > LISTED:
            caption += f": {LISTED} of {len(rows)}"
        parts.append(Table("failed", caption, "/table", headings, rows[:LISTED], folded=True))
    if comparison.failures:
        lines = [
            f"{comparison.title_of(f.method)}, {f.mode}, {view.edits(f.size)}, draw {f.draw + 1}: {f.failure}"
            for f in comparison.failures
        ]
        parts.append(Words("no-result", "Cells without a result", "/failures", lines, "list"))
    return parts


def _outcomes(comparison: EditComparison, mode: Mode) -> Figure:
    """Draw how the edits of every method and size went, as shares and as counts."""
    points = [p for p in comparison.points if p.mode == mode]
    marks = [
        Point(
            _where(comparison, p),
            p.statuses.get(status, 0),
            series=status,
            words=f"{_where(comparison, p)}: {status} {p.statuses.get(status, 0)} of {sum(p.statuses.values())}",
        )
        for p in points
        for status in STATUSES
        if p.statuses.get(status)
    ]
    title = f"Outcomes, {mode}"
    words = f"{title}: shares of edits by outcome for {len(points)} methods and sizes."
    chart = Chart("stack", title, words, marks, list(STATUSES.values()))
    columns = [Quantity(status, f"statuses.{status}", "whole") for status in STATUSES]
    draws = Quantity("Draws", "draws", "whole")
    own = (f"outcomes-{mode}-table", title, "/points")
    table = tabulate(own, [*_columns(comparison)[1:], draws, *columns], points)
    return Figure(f"outcomes-{mode}", title, "/points", [chart], table)


def _where(comparison: EditComparison, point: MethodPoint) -> str:
    return f"{comparison.title_of(point.method)}, {point.size:,}"


def _worst(comparison: EditComparison) -> list[Table]:
    columns = [
        _columns(comparison)[2],
        Quantity("Mode", "mode"),
        Quantity("Neighbour", "prompt"),
        Quantity("Right answer", "wanted"),
        Quantity("p before", "before", "probability"),
        Quantity("p after", "after", "probability"),
        Quantity("Says", lambda row: row.says or "(nothing)"),
    ]
    rows = comparison.worst[:LISTED]
    return (
        [tabulate(("worst", "Worst neighbours", "/worst"), columns, rows, sortable=True)]
        if rows
        else []
    )


def _drift(comparison: EditComparison) -> list[Part]:
    points = [p for p in comparison.points if "drift_kl" in p.metrics]
    if not points:
        return [Words("no-drift", "", "/setting", ["Not measured: name a text with --held-out."])]
    columns = [
        Quantity("KL, nats per token", "metrics.drift_kl"),
        Quantity("Same first choice", "metrics.drift_agreement", "percent", bare=True),
        Quantity("Perplexity before", "metrics.perplexity_before", bare=True),
        Quantity("Perplexity after", "metrics.perplexity", bare=True),
    ]
    own = ("drift-table", "Drift", "/points")
    return [tabulate(own, [*_columns(comparison), *columns], points, sortable=True)]


def _costs(comparison: EditComparison, largest: str) -> list[Table]:
    mode, _, method = _columns(comparison)
    costs = [
        Quantity("Key statistics, once", view.statistics_words),
        Quantity("Value, per edit", view.value_words),
        Quantity("Writing, per edit", "write_seconds", "seconds"),
        Quantity("at edits", "write_size", "whole"),
        Quantity("Peak memory", "peak_memory", "bytes"),
        Quantity("Evaluation, all cells", "evaluation_seconds", "seconds"),
        Quantity("Stages, all cells", view.stage_words),
    ]
    taken = tabulate(
        ("costs", "Costs of every method", "/costs"), [mode, method, *costs], comparison.costs
    )
    last = [p for p in comparison.points if p.size == comparison.sizes[-1]]
    change = Quantity("|Delta| / |W| per layer written, first to last", view.layer_words)
    own = ("change", f"Size of the change at {largest}", "/points")
    return [taken, tabulate(own, [mode, method, change], last)]


def _setting(comparison: EditComparison) -> list[Part]:
    parts: list[Part] = [
        Words("command", "Command", "/setting/command", [comparison.setting.command], "command"),
        Table(
            "setting",
            "How it was run",
            "/setting",
            ["", ""],
            text_rows(view.setting_rows(comparison)),
        ),
    ]
    if comparison.notes:
        parts.append(Words("notes", "Notes", "/notes", comparison.notes, "list"))
    return parts
