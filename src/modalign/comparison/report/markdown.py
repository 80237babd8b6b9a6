"""report.md: the report as tables, without a picture."""

from __future__ import annotations

from modalign.comparison.report import view
from modalign.comparison.report.plots import COSTS, pareto_front, ranked
from modalign.comparison.results import Comparison
from modalign.numbers import words as fmt
from modalign.pages.markdown import escape as esc
from modalign.pages.markdown import table


def render(comparison: Comparison) -> str:
    """The whole page."""
    sections = (
        ["# Comparison of alignment methods"],
        _recommendation(comparison),
        _ranking(comparison),
        _fronts(comparison),
        _skills(comparison),
        _hallucination(comparison),
        _diagnostics(comparison),
        _curves(comparison),
        _differences(comparison),
        _literature(comparison),
        _examples(comparison),
        _setting(comparison),
    )
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _recommendation(comparison: Comparison) -> list[str]:
    r = comparison.recommendation
    if r is None:
        return ["## Recommendation", "No method could be recommended: none finished."]
    picks = ", ".join(f"{esc(n)} {share * 100:.0f} %" for n, share in view.alternatives(r))
    return [
        f"## Recommendation: {esc(r.method)}",
        f"Rule *{esc(r.rule)}*: {esc(view.rule_words(r))}.",
        esc(r.reason),
        esc(view.confidence_words(r)),
        f"Picks when repeated: {picks}.",
        "The choice was made on validation data; every figure below is on evaluation data unless "
        "it says validation.",
    ]


def _ranking(comparison: Comparison) -> list[str]:
    columns = view.COLUMNS
    headings = ["Rank", "Method", "Family", "Accuracy (95 %)", *(c.heading for c in columns)]
    rows = []
    for m in ranked(comparison.methods):
        accuracy = (
            f"failed: {esc(m.failure or 'no reason given')}"
            if m.status == "failed"
            else fmt.interval(m.accuracy_interval)
        )
        cells = [c.cell(m) for c in columns]
        rank = fmt.MISSING if m.rank is None else str(m.rank)
        rows.append([rank, esc(m.name), m.family, accuracy, *cells, esc(view.serving(m))])
    for r in comparison.references:
        blank = [""] * (len(columns) + 1)
        rows.append(["", esc(r.name), "reference", fmt.interval(r.accuracy), *blank])
    meaning = "\n".join(f"* **{c.heading}**: {c.meaning}." for c in columns)
    meaning += f"\n* **Serving**: {view.SERVING}."
    return ["## Ranking", "By validation accuracy.", table([*headings, "Serving"], rows), meaning]


def _fronts(comparison: Comparison) -> list[str]:
    rows = []
    for cost in COSTS:
        known = {
            (float(value), m.accuracy): m.name
            for m in comparison.methods
            if m.accuracy is not None and (value := cost.value(m)) is not None
        }
        front = pareto_front([(c, a) for c, a in known if a is not None])
        named = [
            f"{esc(known[point])} ({cost.show(point[0])}, {fmt.percent(point[1])})"
            for point in front
        ]
        if named:
            rows.append([cost.title, "; ".join(named)])
    if not rows:
        return []
    intro = "Methods that no cheaper one equals (Pareto front), cheapest first."
    return ["## Quality against cost", intro, table(["Cost", "Front"], rows)]


def _skills(comparison: Comparison) -> list[str]:
    shown = [m for m in ranked(comparison.methods) if m.skills]
    names = sorted({skill for m in shown for skill in m.skills})
    if not names:
        return []
    rows = [[esc(m.name), *(fmt.interval(m.skills.get(s)) for s in names)] for m in shown]
    rows += [
        [f"*{esc(r.name)}*", *(fmt.interval(r.skills.get(s)) for s in names)]
        for r in comparison.references
        if r.skills
    ]
    return ["## Skills", table(["Method", *map(esc, names)], rows)]


def _hallucination(comparison: Comparison) -> list[str]:
    found = comparison.hallucination
    if found is None:
        return []
    rows = [
        [f"*{esc(row.name)}*" if row.reference else esc(row.name), *row.cells]
        for row in view.hallucination_rows(comparison)
    ]
    words = esc(view.hallucination_words(comparison))
    body = table(["Method", *view.YES_NO_COLUMNS], rows)
    return ["## Hallucination", words, body, esc(found.verdict)]


def _diagnostics(comparison: Comparison) -> list[str]:
    rows = [[esc(name), esc(figures)] for name, figures in view.diagnostics(comparison)]
    if not rows:
        return []
    intro = "What connectors report of themselves, over the validation media; means over seeds."
    return ["## Codes", intro, table(["Method", "Figures"], rows)]


def _curves(comparison: Comparison) -> list[str]:
    rows = [
        [
            esc(m.name),
            str(run.seed),
            fmt.count(run.samples),
            fmt.number(run.val_loss, 3),
            fmt.percent(run.val_accuracy),
            fmt.percent(run.accuracy),
            fmt.scientific(m.learning_rate),
        ]
        for m in ranked(comparison.methods)
        for run in m.seeds
    ]
    if not rows:
        return []
    headings = ["Method", "Seed", "Samples", "Validation loss", "Validation", "Accuracy"]
    return ["## Trainings", table([*headings, "Learning rate"], rows)]


def _differences(comparison: Comparison) -> list[str]:
    if not comparison.differences:
        return []
    rows = [
        [
            esc(d.first),
            esc(d.second),
            fmt.point_interval(d.difference),
            fmt.p_value(d.p_value),
            fmt.p_value(d.p_holm),
            esc({"first": d.first, "second": d.second}.get(d.verdict, d.verdict)),
        ]
        for d in comparison.differences
    ]
    headings = ["First", "Second", "First minus second, points (95 %)", "p", "p (Holm)", "Better"]
    return ["## Differences", "On the same questions.", table(headings, rows)]


def _literature(comparison: Comparison) -> list[str]:
    if not comparison.contradictions:
        return []
    rows = [
        [
            c.outcome,
            esc(c.claim),
            esc(c.source),
            esc(c.ours) + (f". **{esc(c.advice)}**" if c.advice else ""),
        ]
        for c in comparison.contradictions
    ]
    return ["## Against the literature", table(["Outcome", "Claim", "Source", "Ours"], rows)]


def _examples(comparison: Comparison) -> list[str]:
    order = [m.name for m in ranked(comparison.methods)]
    parts = ["## Examples"] if comparison.examples else []
    for example in comparison.examples:
        parts.append(f"### {esc(example.question)}")
        parts.append(f"Expected: {esc(example.expected)}. Id: {esc(example.id)}.")
        rows = [
            ["right" if g.right else "wrong", esc(g.answer), esc(", ".join(g.methods))]
            for g in view.answer_groups(example, order)
        ]
        parts.append(table(["", "Answer", "Methods"], rows))
    return parts


def _setting(comparison: Comparison) -> list[str]:
    s = comparison.setting
    rows = [[name, esc(value)] for name, value in view.setting_rows(comparison)]
    rows += [[f"Changed: {esc(k)}", esc(v)] for k, v in s.changed.items()]
    rows += [[f"Version of {esc(k)}", esc(v)] for k, v in s.libraries.items()]
    rows += [[f"Hash of {esc(k)}", f"`{esc(v)}`"] for k, v in s.hashes.items()]
    indented = "\n".join("    " + line for line in s.command.splitlines())
    notes = [f"* {esc(note)}" for note in comparison.notes]
    parts = ["## Setting", table(["", ""], rows), "To repeat it:", indented]
    return [*parts, "## Notes", "\n".join(notes)] if notes else parts
