"""The ranking for the terminal, in 100 columns."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modalign.comparison.report.quantities import ranked
from modalign.comparison.results import Comparison, MethodResult, YesNo
from modalign.numbers import words as fmt
from modalign.numbers.estimate import Estimate

_COLOURS = {"converter": "blue", "perceiver": "red", "tool": "green", "data": "magenta"}


def comparison_table(comparison: Comparison) -> Table:
    """Rank, method, accuracy with interval, image gain and costs; the recommended method is marked."""
    table = Table(box=None, padding=(0, 1), header_style="bold", title=_title(comparison))
    table.caption = (
        "± q, t: points that the interval would reach if only questions, or only trainings, were drawn again; "
        "x: how often a method was trained."
    )
    table.add_column("#", justify="right")
    table.add_column("Method", overflow="ellipsis", no_wrap=True, max_width=23)
    for heading in ("Accuracy (95 %)", "± q, t", "x", "Image", "Trainable", "Tokens", "Time"):
        table.add_column(heading, justify="right", no_wrap=True)
    chosen = comparison.recommendation.method if comparison.recommendation else None
    for method in ranked(comparison.methods):
        _add_method(table, method, method.name == chosen)
    for row in comparison.references:
        accuracy = _accuracy(row.accuracy.value, row.accuracy.low, row.accuracy.high)
        table.add_row("", Text(row.name), accuracy, *[""] * 6, style="dim")
    return table


def hallucination_table(comparison: Comparison) -> Table | None:
    """Return POPE's measures on yes/no questions; None if the data have none."""
    found = comparison.hallucination
    if found is None:
        return None
    skills = escape(", ".join(skill.strip("()") for skill in found.skills))
    title = f"Hallucination: {found.n} questions of yes and no ({skills}), {found.positives} yes"
    table = Table(box=None, padding=(0, 1), header_style="bold", title=title)
    table.add_column("Method", overflow="ellipsis", no_wrap=True, max_width=25)
    for heading in ("Accuracy (95 %)", "Precision", "Recall", "F1 (95 %)", "Says yes (95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [(m.name, m.hallucination, "") for m in ranked(comparison.methods)]
    rows += [(name, measures, "dim") for name, measures in found.references.items()]
    for name, measures, style in rows:
        if measures is not None:
            table.add_row(Text(name), *_yes_no_cells(measures), style=style)
    return table


def _yes_no_cells(measures: YesNo) -> list[str]:
    found = (measures.accuracy, measures.precision, measures.recall, measures.f1, measures.yes_rate)
    accuracy, precision, recall, f1, yes = (
        None if each is None else _accuracy(each.value, each.low, each.high) for each in found
    )
    short = [each and each.partition(" ")[0] for each in (precision, recall)]
    return [each or fmt.MISSING for each in (accuracy, *short, f1, yes)]


def _title(comparison: Comparison) -> str | None:
    r = comparison.recommendation
    if r is None:
        return None
    if r.method is None:
        return f"Recommended: none; best so far: {escape(r.best)}"
    sure = f"{fmt.percent(r.confidence)} sure{' of these trainings alone' if r.of_questions_alone else ''}"
    return f"Recommended: {escape(r.method)} ({escape(r.rule)}, {sure})"


def _add_method(table: Table, method: MethodResult, chosen: bool) -> None:
    name = Text(("* " if chosen else "  ") + method.name, style=_COLOURS[method.family])
    if method.status == "failed":
        table.add_row(fmt.MISSING, name, "failed", *[""] * 6, style="dim")
        return
    interval = method.accuracy_interval
    table.add_row(
        fmt.MISSING if method.rank is None else str(method.rank),
        name,
        fmt.MISSING if interval is None else _accuracy(interval.value, interval.low, interval.high),
        fmt.MISSING if interval is None else _reaches(interval),
        str(len(method.seeds)),
        fmt.points(method.image_gain_blank.value if method.image_gain_blank else None),
        fmt.count(method.trainable_parameters),
        fmt.count(method.tokens),
        fmt.seconds(method.seconds),
        style="bold" if chosen else "",
    )


def _reaches(found: Estimate) -> str:
    """Format the half-widths by questions and by trainings, in points."""
    parts = (found.by_questions, found.by_trainings)
    return ", ".join(fmt.MISSING if each is None else f"{each * 100:.1f}" for each in parts)


def _accuracy(value: float, low: float, high: float) -> str:
    return f"{value * 100:.1f} ({low * 100:.1f}–{high * 100:.1f})"
