"""report.md: the report as tables, without a picture."""

from __future__ import annotations

from modalign.editing.compare.report import view
from modalign.editing.compare.results import EditComparison, Mode
from modalign.numbers import words as fmt
from modalign.pages.markdown import escape, table

LISTED = 50  # failed edits and neighbours


def render(comparison: EditComparison) -> str:
    """The whole page."""
    sections = [_head(comparison)]
    for mode in comparison.modes:
        sections += [_scores(comparison, mode), _pairs(comparison, mode)]
    sections += [
        _statuses(comparison),
        _failed_edits(comparison),
        _worst(comparison),
        _drift(comparison),
        _costs(comparison),
        _setting(comparison),
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _head(comparison: EditComparison) -> list[str]:
    sentences = [view.headline_pair(comparison, mode) for mode in comparison.modes]
    names = (comparison.headline, *comparison.parts)
    meaning = "\n".join(f"* **{name}**: {view.MEANINGS[name]}." for name in names)
    return [
        "# Comparison of editing methods",
        f"{comparison.task}, teacher-forced; times 100, with 95 % bootstrap intervals over edits.",
        *(escape(sentence) for sentence in sentences if sentence),
        meaning,
    ]


def _scores(comparison: EditComparison, mode: Mode) -> list[str]:
    names = [comparison.headline, *comparison.parts]
    rows = []
    for size in comparison.sizes:
        for reference in comparison.references:
            if reference.size in {size, None}:
                cells = [view.scored(reference.metrics.get(name)) for name in names]
                rows.append([f"{size:,}", f"*{reference.name}*", *cells, "", ""])
        for info in comparison.methods:
            point = comparison.point(info.name, mode, size)
            if point is None:
                rows.append([f"{size:,}", info.title, "failed", *[""] * (len(names) + 1)])
                continue
            cells = [view.scored(point.metrics.get(name)) for name in names]
            free = view.plain(point.metrics.get("free_rewrite"))
            rows.append([f"{size:,}", info.title, *cells, free, str(point.n)])
    headings = ["Edits", "Method", *names, "Free", "n"]
    return [f"## {view.MODE_WORDS[mode]}", table(headings, rows)]


def _pairs(comparison: EditComparison, mode: Mode) -> list[str]:
    rows = []
    for found in comparison.differences:
        if found.mode == mode and found.metric == comparison.headline:
            rows.append(
                [
                    f"{found.size:,}",
                    comparison.title_of(found.first),
                    comparison.title_of(found.second),
                    view.gap(found),
                    str(found.n),
                    fmt.p_value(found.p_holm),
                    view.verdict(comparison, found),
                ]
            )
    if not rows:
        return []
    headings = ["Edits", "First", "Second", "First minus second", "n", "p (Holm)", "Verdict"]
    intro = (
        f"Differences in {comparison.headline}, {mode}, on the same edits; every score's are in "
    )
    return [intro + "`report.json`.", table(headings, rows)]


def _statuses(comparison: EditComparison) -> list[str]:
    order = list(view.STATUS_WORDS)
    rows = [
        [p.mode, f"{p.size:,}", comparison.title_of(p.method)]
        + [str(p.statuses.get(status, 0)) for status in order]
        for p in comparison.points
    ]
    meaning = "\n".join(f"* **{status}**: {words}." for status, words in view.STATUS_WORDS.items())
    return ["## How the edits went", table(["Mode", "Edits", "Method", *order], rows), meaning]


def _failed_edits(comparison: EditComparison) -> list[str]:
    rows = [
        [
            *map(escape, (row.id, row.prompts[0].prompt, row.target)),
            each.mode,
            comparison.title_of(each.method),
            each.status,
            escape(each.reason),
        ]
        for row in comparison.table
        for each in row.after
        if each.status != "done"
    ]
    parts = []
    if rows and comparison.table_size is not None:
        headings = ["Id", "Prompt", "Target", "Mode", "Method", "Status", "Reason"]
        title = f"### Failed edits at {view.edits(comparison.table_size)}, first draw"
        parts = [title, table(headings, rows[:LISTED])]
        if len(rows) > LISTED:
            parts.append(f"{len(rows) - LISTED} more are in `report.html`.")
    if comparison.failures:
        lines = [
            f"* {comparison.title_of(f.method)}, {f.mode}, {view.edits(f.size)}, draw {f.draw + 1}: "
            + escape(f.failure)
            for f in comparison.failures
        ]
        parts += ["### Cells without a result", "\n".join(lines)]
    return parts


def _worst(comparison: EditComparison) -> list[str]:
    if not comparison.worst:
        return []
    rows = [
        [
            escape(w.prompt),
            escape(w.wanted),
            f"{w.before:.2f}",
            f"{w.after:.2f}",
            escape(w.says),
            comparison.title_of(w.method),
            w.mode,
        ]
        for w in comparison.worst[:LISTED]
    ]
    headings = ["Neighbour", "Right answer", "p before", "p after", "Says", "Method", "Mode"]
    return [
        f"## Worst neighbours at {view.edits(comparison.sizes[-1])}",
        table(headings, rows),
    ]


def _drift(comparison: EditComparison) -> list[str]:
    rows = []
    for p in comparison.points:
        if "drift_kl" in p.metrics:
            m = p.metrics
            rows.append(
                [
                    p.mode,
                    f"{p.size:,}",
                    comparison.title_of(p.method),
                    view.plain(m["drift_kl"], 4),
                    view.plain(m.get("drift_agreement")),
                    view.plain(m.get("perplexity_before"), 2),
                    view.plain(m.get("perplexity"), 2),
                ]
            )
    if not rows:
        return []
    headings = ["Mode", "Edits", "Method", "KL, nats per token", "Same first choice, %"]
    return ["## Drift on held-out text", table([*headings, "Perplexity before", "after"], rows)]


def _costs(comparison: EditComparison) -> list[str]:
    rows = [[c.mode, comparison.title_of(c.method), *view.cost_cells(c)] for c in comparison.costs]
    size = comparison.sizes[-1]
    layers = [
        [p.mode, comparison.title_of(p.method), view.layer_words(p)]
        for p in comparison.points
        if p.size == size
    ]
    return [
        "## Time and memory",
        table(["Mode", "Method", *view.COST_HEADINGS], rows),
        f"Size of the change, |Delta| / |W| per layer written, at {view.edits(size)}:",
        table(["Mode", "Method", "First to last layer"], layers),
    ]


def _setting(comparison: EditComparison) -> list[str]:
    rows = [[name, escape(value)] for name, value in view.setting_rows(comparison)]
    rows += [[f"Settings of {name}", f"`{text}`"] for name, text in view.settings_words(comparison)]
    parts = [
        "## To run it again",
        f"    {comparison.setting.command}",
        table(["", ""], rows),
    ]
    notes = "\n".join(f"* {escape(note)}" for note in comparison.notes)
    return [*parts, "## Notes", notes] if notes else parts
