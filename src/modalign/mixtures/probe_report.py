"""The report of a probe: report.json, its schema, report.md and report.html."""

from __future__ import annotations

from modalign.mixtures.probe_results import EVERYTHING, ORACLE, Probe, Ranked, Row
from modalign.numbers import words
from modalign.numbers.pairs import Difference
from modalign.pages.figures import Axis, Chart, Point, Rule, Series
from modalign.pages.parts import (
    Advice,
    Cell,
    Figure,
    Part,
    Quantity,
    Section,
    Table,
    Tone,
    Words,
    tabulate,
)
from modalign.pages.report import Report

_KINDS = ("reference", "control", "candidate")
_ROWS = (
    "Every row is trained under the same budget and the same seeds, from the same start, and judged on the same "
    "held-out records; passes say how often its records repeat within the budget. Random rows draw other records "
    "for every seed. Intervals are 95 %, over records and trainings."
)


def report_of(found: Probe) -> Report:
    """Return the report with all sections that have something to show."""
    sections = [
        Section("answer", "What it recommends", "", answer(found)),
        Section("rows", "Trained on each choice of records", _ROWS, [figure(found)]),
        Section(
            "differences",
            "Is a choice better than no filter?",
            "Paired over the held-out records; positive is better than no filter. P-values are corrected for the "
            "number of candidates (Holm). “No difference found” does not mean “equal”.",
            [differences_table(found)],
        ),
        Section(
            "controls",
            "Is it the records, or their number?",
            "Each choice against random records of the same number, and the oracle where the truth is known.",
            _controls(found),
        ),
        Section(
            "operators",
            "What the operators see",
            "The statistic over the training records: its range, and the two values that cut the thirds.",
            [operators_table(found)],
        ),
        Section(
            "repetition",
            "Repetition against diversity",
            "Under one budget fewer records repeat more often: shares of the best records, and random ones.",
            _repetition(found),
        ),
        Section("again", "To run it again", "", _setting(found)),
    ]
    c = found.config
    return Report(
        "Data probe",
        f"{found.records} records of {c.data.train}, seeds: {c.seeds}; {found.finished}",
        [section for section in sections if section.parts],
        "Every figure is in report.json.",
        found,
    )


def findings(found: Probe) -> list[str]:
    """Return what was found, in sentences."""
    said = [found.reason]
    if found.judged is not None:
        said.append(
            f"On the evaluation data, which chose nothing: {words.interval(found.judged.difference)} against no "
            f"filter ({said_verdict(found.judged)})."
        )
    elif found.chosen != EVERYTHING:
        said.append(
            "It was not judged on other records than those that chose it: data.eval would do that."
        )
    for each in found.operators:
        if each.finds is not None:
            kept = ", ".join(f"{level} {words.percent(v)}" for level, v in each.kept.items())
            said.append(
                f"{each.name} tells good records from bad ones with an area of {words.interval(each.finds)} under "
                f"the ROC curve; good records in its pools: {kept}."
            )
    for pair in found.references:
        if (pair.first, pair.second) == (ORACLE, EVERYTHING):
            said.append(
                f"The truly good records alone: {words.interval(pair.difference)} against no filter "
                f"({said_verdict(pair)}): what a perfect filter is worth under this budget."
            )
    return said


def answer(found: Probe) -> list[Part]:
    """Return the recommendation."""
    tiles = [
        ("No filter", words.value(found.row(EVERYTHING).figure), _unit(found)),
        ("Records", f"{found.records:,}", f"judged on {found.held:,}"),
    ]
    if found.chosen != EVERYTHING:
        row = found.row(found.chosen)
        tiles.insert(0, (found.chosen, words.value(row.figure), _unit(found)))
        tiles.append(("Records kept", f"{row.records:,}", found.kept or ""))
    said = findings(found)
    return [Advice("advice", "", "/chosen", found.chosen, "", said, "", (), tiles)]


def _unit(found: Probe) -> str:
    return "nats per token" if found.config.metric == "loss" else "exact answers"


def _tone(found: Probe, row: Row) -> Tone:
    if row.name == found.chosen:
        return "chosen"
    return "" if row.kind == "candidate" else "reference"


def rows_table(found: Probe) -> Table:
    """Return all rows."""
    name = "Loss" if found.config.metric == "loss" else "Accuracy"
    columns = [
        Quantity("Records", "name"),
        Quantity(name, "figure", meaning="on the held-out records that choose", drawn=True),
        Quantity("On the evaluation data", "test"),
        Quantity("Number", "records", "whole"),
        Quantity("Passes", lambda row: Cell(f"{row.passes:.1f}", key=row.passes)),
        Quantity("Good", "good", "share", meaning="share of good records, by the truth"),
        Quantity("Each seed", lambda row: ", ".join(f"{value:.3f}" for value in row.seeds)),
    ]
    part = ("rows-table", "The same training on each choice of records", "/rows")
    return tabulate(part, columns, found.rows, tone=lambda row: _tone(found, row), sortable=True)


def figure(found: Probe) -> Figure:
    """Draw all trained rows with their intervals."""
    rows = [row for row in found.rows if row.records]
    series = [Series(kind, number) for number, kind in enumerate(_KINDS)]
    points = [
        Point(
            row.name,
            row.figure.value,
            row.figure.low,
            row.figure.high,
            row.kind,
            f"{row.name}: {words.interval(row.figure)}",
        )
        for row in rows
    ]
    unit = "share" if found.config.metric == "accuracy" else ""
    axis = Axis(_unit(found), unit)
    best = found.row(EVERYTHING).figure.value
    chart = Chart(
        "rows",
        "Held-out figure of each choice of records",
        "One row per choice of records, with 95 % intervals; the line is no filter.",
        points,
        [each for each in series if any(row.kind == each.name for row in rows)],
        Axis("records"),
        axis,
        rules=[Rule(best, EVERYTHING)],
    )
    return Figure("rows-figure", "Trained on each choice", "/rows", [chart], rows_table(found))


def said_verdict(pair: Difference) -> str:
    """Return the verdict in words."""
    better = {"first": pair.first, "second": pair.second}.get(pair.verdict)
    return f"{better} is better" if better else pair.verdict


PAIRS = [
    Quantity("Records", "first"),
    Quantity("Against", "second"),
    Quantity("Difference", "difference", meaning="positive: better", drawn=True),
    Quantity("p (Holm)", lambda pair: Cell(words.p_value(pair.p_holm), key=pair.p_holm)),
    Quantity("Verdict", said_verdict),
]


def differences_table(found: Probe) -> Table:
    """Return every candidate against no filter."""
    return tabulate(
        ("candidates-table", "Candidates against no filter", "/candidates"),
        PAIRS,
        found.candidates,
        tone=lambda pair: "chosen" if pair.first == found.chosen else "",
    )


def _controls(found: Probe) -> list[Part]:
    parts: list[Part] = [
        tabulate(("controls-table", "Against random records", "/controls"), PAIRS, found.controls),
        tabulate(("references-table", "References", "/references"), PAIRS, found.references),
    ]
    return parts


def operators_table(found: Probe) -> Table:
    """Return a row per statistic."""
    columns = [
        Quantity("Operator", "name"),
        Quantity("Records with a value", "records", "whole"),
        Quantity("Lowest", lambda row: _quantile(row, 0)),
        Quantity("First cut", lambda row: _quantile(row, 1)),
        Quantity("Second cut", lambda row: _quantile(row, 2)),
        Quantity("Highest", lambda row: _quantile(row, 3)),
        Quantity(
            "Tied at a cut", "ties", "share", meaning="equal to a cut's value, split by chance"
        ),
        Quantity(
            "Finds good records",
            "finds",
            meaning="area under the ROC curve of the statistic for good against bad records; 0.5 by chance",
        ),
        Quantity("Best pool", "best"),
        Quantity("Better than no filter", lambda row: row.found or "none found"),
    ]
    return tabulate(("operators-table", "Statistics", "/operators"), columns, found.operators)


def _quantile(row: Ranked, place: int) -> Cell:
    value = row.quantiles[place]
    return Cell(f"{value:.4g}", key=value)


def _repetition(found: Probe) -> list[Part]:
    """Draw the figure against the share of records: the best ones, and random ones."""
    shares = [row for row in found.rows if row.phase == "repetition" and row.kind == "candidate"]
    if not shares:
        return []
    ((name, level),) = shares[0].operators.items()
    best = [*shares, found.row(f"{name} {level}"), found.row(EVERYTHING)]
    controls = {row.control for row in best if row.control}
    drawn = [*(row for row in found.rows if row.name in controls), found.row(EVERYTHING)]
    series = [Series(f"best by {name} ({level})", 2), Series("random", 1)]
    points = [
        Point(
            100 * (row.share or 0.0),
            row.figure.value,
            row.figure.low,
            row.figure.high,
            each.name,
            f"{row.name}: {words.interval(row.figure)}, {row.passes:.1f} passes over {row.records:,} records",
        )
        for each, rows in zip(series, (best, drawn), strict=True)
        for row in sorted(rows, key=lambda row: row.records)
    ]
    chart = Chart(
        "lines",
        "Share of the records kept",
        "The held-out figure against the share of records trained on, under one budget.",
        points,
        series,
        Axis("percent of the records", bounds=(0, 100)),
        Axis(_unit(found), "share" if found.config.metric == "accuracy" else ""),
    )
    return [Figure("repetition-figure", "Repetition against diversity", "/rows", [chart])]


def _setting(found: Probe) -> list[Part]:
    parts: list[Part] = [Words("command", "Command", "/command", [found.command], "command")]
    if found.notes:
        parts.append(Words("notes", "Notes", "/notes", found.notes, "list"))
    return parts
