"""The report of a comparison: report.json, its schema, report.md and report.html.

The JSON file is the report; the other two are renderings of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modalign.comparison.recommendation import RULES
from modalign.comparison.report import view
from modalign.comparison.report.charts import cost_figures, curve_figure, skill_figure
from modalign.comparison.report.dials import dials
from modalign.comparison.report.quantities import (
    ACCURACY,
    ALL_COSTS,
    ANSWER,
    BLANK,
    CROSSINGS,
    FORETOLD,
    INFERENCE,
    NAME,
    QUALITY,
    RANKING,
    TOKENS,
    TRAINABLE,
    YES_NO,
    method_of,
    rank_of,
    ranked,
)
from modalign.comparison.results import Comparison, MethodResult, Schedule
from modalign.numbers import words as fmt
from modalign.numbers.pairs import NO_DIFFERENCE, Difference
from modalign.pages.parts import (
    Advice,
    Answer,
    Cell,
    Gallery,
    Item,
    Part,
    Quantity,
    Row,
    Section,
    Table,
    Tone,
    Words,
    tabulate,
    text_rows,
)
from modalign.pages.report import Report
from modalign.training.budget import Budget

UNKNOWN = "No method could be recommended: none finished."


def write_report(comparison: Comparison, out: Path) -> None:
    """Write the report into a folder, each file atomically."""
    report_of(comparison).write(out)


def report_of(comparison: Comparison) -> Report:
    """Build the report with all non-empty sections."""
    setting = comparison.setting
    sections = (
        Section("recommendation", "Recommendation", "", [_advice(comparison)]),
        _ranking(comparison),
        Section(
            "cost",
            "Quality against cost",
            "Up and to the left is better. The stairs are the Pareto front: no cheaper method is as good as "
            "one on it. Bars are 95 % intervals over questions and trainings; hollow marks were trained once.",
            cost_figures(comparison),
        ),
        Section(
            "skills",
            "Skills",
            "Accuracy on the questions of each skill; methods in ranking order. The dashed line is chance.",
            [figure] if (figure := skill_figure(comparison)) else [],
        ),
        _hallucination(comparison),
        _codes(comparison),
        Section(
            "curves",
            "Learning curves",
            "Means over the seeds, cut at the top. A curve still falling at its end would gain from a larger "
            "budget.",
            [figure] if (figure := curve_figure(comparison)) else [],
        ),
        dials(comparison),
        _plan(comparison),
        _differences(comparison),
        _literature(comparison),
        _examples(comparison),
        _setting(comparison),
    )
    return Report(
        "Comparison of alignment methods",
        f"{len(comparison.methods)} methods, {Budget.parse(setting.budget).words()}; {setting.finished}",
        [section for section in sections if section.parts],
        f"Written by modalign {setting.version}. The same content as data: report.json (schema version "
        f"{comparison.schema_version}).",
        comparison,
    )


def _advice(comparison: Comparison) -> Advice:
    found = comparison.recommendation
    if found is None:
        return Advice("advice", "Recommended", "/recommendation", "None", sentences=[UNKNOWN])
    method = next((m for m in comparison.methods if m.name == found.method), None)
    rule = RULES.get(found.rule, found.rule)
    so_far = f"best/ holds the best so far, {found.best}; it is not recommended."
    return Advice(
        "advice",
        "Recommended",
        "/recommendation",
        found.method or "None",
        f"{found.rule}: {rule}" if found.method else rule,
        [
            found.reason,
            *([found.price] if found.price else []),
            *([comparison.schedule.words] if comparison.schedule else []),
            *([*found.advice, so_far] if found.method is None else []),
            "Chosen on validation data. Everything below is measured on evaluation data unless it says "
            "validation.",
        ],
        view.confidence_words(found),
        view.alternatives(found),
        _tiles(method) if method else [],
    )


def _tiles(method: MethodResult) -> list[tuple[str, str, str]]:
    """Return accuracy and costs of the recommended method."""
    tiles = (
        ("Accuracy", fmt.value(method.accuracy_interval), fmt.ends(method.accuracy_interval)),
        ("Gain", BLANK.text(method), "points over blank media"),
        ("Trainable", TRAINABLE.text(method), "parameters"),
        ("Tokens", TOKENS.text(method), "per item"),
        ("Compute", INFERENCE.text(method), "per answer"),
        ("First answer", ANSWER.text(method), "encoder included"),
        ("Serving", method.serving, ", ".join(method.served_by)),
    )
    return [tile for tile in tiles if tile[1] != fmt.MISSING]


def _ranking(comparison: Comparison) -> Section:
    finished = [m for m in ranked(comparison.methods) if m.status == "ok"]
    failed = [m for m in ranked(comparison.methods) if m.status == "failed"]
    chosen = comparison.recommendation.method if comparison.recommendation else None

    def tone(row: object) -> Tone:
        if not isinstance(row, MethodResult):
            return "reference"
        return "chosen" if row.name == chosen else ""

    first = (rank_of(comparison), method_of(comparison))
    shown = [*finished, *comparison.references]
    table = tabulate(
        ("ranking-table", "Methods in ranking order", "/methods"),
        (*first, *RANKING),
        shown,
        tone=tone,
        sortable=True,
    )
    lost = [_failed(m, first, max(1, len(table.headings) - 2)) for m in failed]
    headings = table.headings if shown else ["Rank", "Method", ACCURACY.name]
    place = len(finished)
    rows = [*table.rows[:place], *lost, *table.rows[place:]]
    table = replace(table, headings=headings, rows=rows, header=1)
    more = [
        tabulate(
            (f"ranking-{name}", caption, "/methods"),
            (NAME, *columns),
            finished,
            tone=tone,
            sortable=True,
            folded=True,
        )
        for name, caption, columns in (
            ("quality", "More on accuracy, and on the use of the medium", QUALITY),
            ("costs", "All costs, and what serves each method", ALL_COSTS),
        )
        if finished
    ]
    unknown = _unknown(comparison)
    lead = (
        "By validation accuracy. Intervals are 95 %, over other questions (redrawn by image) and other "
        f"trainings{unknown}. Select a heading to sort."
    )
    parts = [table, *more] if comparison.methods or comparison.references else []
    return Section("ranking", "Ranking", lead, parts)


def _unknown(comparison: Comparison) -> str:
    """Return a remark if the spread between trainings is unknown."""
    known = [m.accuracy_interval for m in comparison.methods if m.accuracy_interval is not None]
    if any(each.of_questions_alone for each in known):
        return " (here not: no method was trained twice, so nothing is known of the spread between trainings)"
    return ""


def _failed(method: MethodResult, first: Sequence[Quantity], columns: int) -> Row:
    words = f"failed: {method.failure or 'no reason given'}"
    return Row([*(q.cell(method) for q in first), Cell(words, tone="failed", columns=columns)])


def _hallucination(comparison: Comparison) -> Section:
    found = comparison.hallucination
    if found is None:
        return Section("hallucination", "Hallucination", "", [])
    own = [(m.name, m.hallucination) for m in ranked(comparison.methods)]
    measured = {name: measures for name, measures in own if measures is not None}
    rows = [
        {"name": name, "found": each}
        for name, each in (*measured.items(), *found.references.items())
    ]
    columns = [NAME, *(replace(q, field=f"found.{q.field}") for q in YES_NO)]
    table = tabulate(
        ("hallucination-table", "Questions of yes and no", "/methods"),
        columns,
        rows,
        tone=lambda row: "" if row["name"] in measured else "reference",
        sortable=True,
    )
    verdict = Words("hallucination-verdict", "", "/hallucination/verdict", [found.verdict])
    return Section(
        "hallucination", "Hallucination", view.hallucination_words(comparison), [table, verdict]
    )


def _codes(comparison: Comparison) -> Section:
    shown = [m for m in ranked(comparison.methods) if m.diagnostics]
    names = list(dict.fromkeys(name for m in shown for name in m.diagnostics))
    columns = [NAME, *(Quantity(name, f"diagnostics.{name}", "score") for name in names)]
    lead = "What connectors report of themselves, over the validation media; means over seeds."
    parts = (
        [tabulate(("codes-table", "Figures of the codes", "/methods"), columns, shown)]
        if shown
        else []
    )
    return Section("codes", "Codes", lead, parts)


def _plan(comparison: Comparison) -> Section:
    found = comparison.plan
    if found is None:
        return Section("plan", "At a larger budget", "", [])
    parts: list[Part] = [Words("plan-words", "", "/plan/words", [found.words])]
    if found.methods:
        parts.append(
            tabulate(
                (
                    "plan-table",
                    f"Foretold for {Budget.parse(found.budget).words()}",
                    "/plan/methods",
                ),
                FORETOLD,
                found.methods,
                sortable=True,
            )
        )
    if found.crossings:
        parts.append(
            tabulate(
                ("crossings", "Where the order is foretold to turn", "/plan/crossings"),
                CROSSINGS,
                found.crossings,
            )
        )
    lead = (
        "From the learning curves: each goes on at a rate between its own and the mean of all, as uncertain as "
        "rates differ among the methods."
    )
    return Section("plan", "At a larger budget", lead, parts)


def _differences(comparison: Comparison) -> Section:
    if not comparison.differences:
        return Section("differences", "Differences", "", [])
    pairs = Table(
        "pairs",
        "Every pair with its interval and p-values",
        "/differences",
        ["First", "Second", "First minus second, points (95 %)", "p", "p (Holm)", "Better"],
        [_pair(d) for d in comparison.differences],
        sortable=True,
        folded=True,
    )
    lead = (
        "Row minus column in points of accuracy, on the same questions, p-values corrected for the number of "
        f"pairs (Holm), over other questions and other trainings{_unknown(comparison)}. Blue: the row is "
        "better; orange: the column is. A dot means that no difference was found, which is not the same as "
        "being equal."
    )
    return Section("differences", "Differences", lead, [_matrix(comparison), pairs])


def _pair(found: Difference) -> Row:
    better = {"first": found.first, "second": found.second}.get(found.verdict, found.verdict)
    return Row(
        [
            Cell(found.first, key=found.first),
            Cell(found.second, key=found.second),
            Cell(fmt.point_interval(found.difference), key=found.difference.value),
            Cell(fmt.p_value(found.p_value), key=found.p_value),
            Cell(fmt.p_value(found.p_holm), key=found.p_holm),
            Cell(better, key=better),
        ]
    )


def _matrix(comparison: Comparison) -> Table:
    """Row minus column for every pair, in ranking order; without failed methods."""
    known = {(d.first, d.second): d for d in comparison.differences}
    involved = {name for pair in known for name in pair}
    names = [m.name for m in ranked(comparison.methods) if m.name in involved]
    rows = [
        Row([Cell(f"{number} {name}"), *(_matrix_cell(known, name, other) for other in names)])
        for number, name in enumerate(names, start=1)
    ]
    headings = ["", *(str(number) for number in range(1, len(names) + 1))]
    return Table("matrix", "Matrix of differences", "/differences", headings, rows, compact=True)


def _matrix_cell(known: dict[tuple[str, str], Difference], row: str, column: str) -> Cell:
    if row == column:
        return Cell("")
    found = known.get((row, column)) or known.get((column, row))
    if found is None:
        return Cell("", hint=f"{row} and {column} were not compared")
    gap = fmt.points((1 if found.first == row else -1) * found.difference.value)
    hint = f"{row} minus {column}: {gap} points, p {fmt.p_value(found.p_holm)}"
    if found.verdict == NO_DIFFERENCE:
        return Cell("·", tone="same", hint=f"{hint}, {NO_DIFFERENCE}")
    winner = found.first if found.verdict == "first" else found.second
    return Cell(gap, tone="better" if winner == row else "worse", hint=hint)


def _literature(comparison: Comparison) -> Section:
    parts = []
    for name, caption, comparable in (
        ("compared", "Compared", True),
        ("not-comparable", "Not comparable", False),
    ):
        findings = view.literature(comparison, comparable)
        if findings:
            headings = ["Outcome", "Published", "Ours"]
            rows = [_finding(each) for each in findings]
            caption = f"{caption} ({len(rows)})"
            table = Table(name, caption, "/contradictions", headings, rows, folded=not comparable)
            parts.append(table)
    lead = (
        "Published orderings beside ours. A small comparison that contradicts large ones has more likely "
        "found a mistake than news."
    )
    return Section("literature", "Against the literature", lead, parts)


def _finding(found: view.Finding) -> Row:
    tones: dict[str, Tone] = {"contradicts": "worse", "agrees": "better"}
    ours = Cell("; ".join(found.ours), found.advice or "")
    return Row(
        [
            Cell(found.outcome, tone=tones.get(found.outcome, "")),
            Cell(found.claim, found.source),
            ours,
        ]
    )


def _examples(comparison: Comparison) -> Section:
    order = [m.name for m in ranked(comparison.methods)]
    items = [
        Item(
            view.image_data(example),
            example.question,
            f"Expected: {example.expected}. {example.skill or ''} Id: {example.id}.",
            [
                Answer(g.answer, g.right, ", ".join(g.methods))
                for g in view.answer_groups(example, order)
            ],
        )
        for example in comparison.examples
    ]
    lead = "The same scenes answered by every method, equal answers together."
    parts = [Gallery("gallery", "Questions with answers", "/examples", items)] if items else []
    return Section("examples", "Examples", lead, parts)


def _setting(comparison: Comparison) -> Section:
    s = comparison.setting
    inputs = [(f"changed: {name}", value) for name, value in s.changed.items()]
    inputs += [
        *s.libraries.items(),
        *((f"hash of {name}", value) for name, value in s.hashes.items()),
    ]
    parts: list[Part] = [
        Words("command", "Command", "/setting/command", [s.command], "command"),
        Table(
            "run", "How it was run", "/setting", ["", ""], text_rows(view.setting_rows(comparison))
        ),
        Table("inputs", "Data, weights and libraries", "/setting", ["", ""], text_rows(inputs)),
    ]
    if comparison.schedule and len(comparison.schedule.rounds) > 1:
        parts.append(_rounds(comparison.schedule))
    if comparison.notes:
        parts.append(Words("notes", "Notes", "/notes", comparison.notes, "list"))
    return Section("setting", "Setting", "Enough to repeat it.", parts)


def _rounds(schedule: Schedule) -> Table:
    """List which methods were trained again, and the state before."""
    rows = [
        Row(
            [
                Cell(str(each.trainings)),
                Cell(", ".join(each.added) or "every method twice"),
                Cell(each.method or "none"),
                Cell(fmt.percent(each.confidence)),
            ]
        )
        for each in schedule.rounds
    ]
    headings = ["Trainings so far", "Trained last", "Choice", "Sure"]
    return Table(
        "rounds", "Where trainings were added", "/schedule/rounds", headings, rows, folded=True
    )
