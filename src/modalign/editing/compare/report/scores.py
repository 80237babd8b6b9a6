"""The figures of an edit comparison: a score against the number of edits, one chart per score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modalign.editing.compare.report import view
from modalign.editing.compare.results import EditComparison, MethodPoint, Mode, Reference
from modalign.numbers.estimate import Estimate
from modalign.pages.drawing import line_chart
from modalign.pages.figures import Axis, Chart, Rule, Series
from modalign.pages.parts import Cell, Figure, Quantity, Table, tabulate


def kinds(comparison: EditComparison) -> dict[str, Series]:
    """Return method -> its title with the number of its colour and shape."""
    return {info.name: Series(info.title, number) for number, info in enumerate(comparison.methods)}


def score_figure(comparison: EditComparison, mode: Mode) -> Figure:
    """Draw all scores of one mode, with their table."""
    names = (comparison.headline, *comparison.parts)
    charts = [chart for name in names if (chart := _chart(comparison, mode, name))]
    table = score_table(comparison, mode)
    return Figure(f"scores-{mode}", view.MODE_WORDS[mode], "/points", charts, table, least=420)


def _quantity(name: str) -> Quantity:
    return Quantity(name, f"metrics.{name}", "percent", view.MEANINGS.get(name, ""))


def _chart(comparison: EditComparison, mode: Mode, name: str) -> Chart | None:
    """Draw one score of all methods against the number of edits (logarithmic), with intervals."""
    score = _quantity(name)
    methods = [
        Quantity(
            info.title,
            _at_size({s: comparison.point(info.name, mode, s) for s in comparison.sizes}, name),
        )
        for info in comparison.methods
    ]
    before = {r.size: r for r in comparison.references if r.size is not None}
    unedited = [Quantity("unedited", _at_size(before, name))] if before else []
    rules = [
        Rule(value, f"{reference.name}: {score.text(reference)}")
        for reference in comparison.references
        if reference.size is None and (value := score.number(reference)) is not None
    ]
    size = Quantity("edits", lambda size: size, "whole")
    place = Axis("edits (logarithmic)", "count", log=True, whole=True)
    values = Axis("", "percent", bounds=(0.0, 100.0))
    chart = line_chart(
        name, methods, comparison.sizes, size, values, place=place, rules=rules, references=unedited
    )
    return chart if any(p.series != "unedited" for p in chart.points) else None


def _at_size(
    found: Mapping[int, MethodPoint | Reference | None], name: str
) -> Callable[[int], Estimate | None]:
    """Make a score a function of the number of edits."""

    def of(size: int) -> Estimate | None:
        row = found.get(size)
        return row.metrics.get(name) if row else None

    return of


def score_table(comparison: EditComparison, mode: Mode) -> Table:
    """Tabulate every score of a mode: for each size the unedited model, the coin toss and the methods."""
    marks = kinds(comparison)
    rows: list[dict[str, Any]] = []
    for size in comparison.sizes:
        references = [r for r in comparison.references if r.size in {size, None}]
        rows += [
            {"size": size, "name": Cell(r.name), "metrics": r.metrics, "n": None}
            for r in references
        ]
        for info in comparison.methods:
            found = comparison.point(info.name, mode, size)
            name = Cell(info.title, "" if found else "no result", info.title, mark=marks[info.name])
            metrics = found.metrics if found else {}
            rows.append(
                {"size": size, "name": name, "metrics": metrics, "n": found.n if found else None}
            )
    columns = [
        Quantity("Method", "name"),
        Quantity("Edits", "size", "whole"),
        *(_quantity(name) for name in (comparison.headline, *comparison.parts)),
        Quantity("Free", "metrics.free_rewrite", "percent", view.MEANINGS["free"], bare=True),
        Quantity("n", "n", "whole", "edits that the scores are over"),
    ]
    titles = {info.title for info in comparison.methods}
    return tabulate(
        (f"scores-{mode}-table", f"{mode.capitalize()}, 95 % intervals", "/points"),
        columns,
        rows,
        tone=lambda row: "" if row["name"].text in titles else "reference",
        sortable=True,
    )
