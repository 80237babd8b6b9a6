"""The report of one model under several conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modalign.evaluation.conditions.corrupted import CLEAN
from modalign.evaluation.conditions.results import Condition, Conditions
from modalign.numbers import words
from modalign.numbers.pairs import NO_DIFFERENCE, Difference
from modalign.pages.figures import Axis, Chart, Point, Rule, Series
from modalign.pages.parts import Cell, Figure, Part, Quantity, Section, Table, Words, tabulate
from modalign.pages.report import Report

_TITLES = {
    "shots": "What examples in the prompt do",
    "corruption": "How much corruption the model stands",
    "rationale": "What a rationale does",
}
_PAIRS = (
    "The first condition minus the second on the same questions; p-values are corrected over all pairs (Holm). "
    "“No difference found” does not mean “equal”: the interval says how large one might be."
)


def conditions_report(found: Conditions) -> Report:
    """Build the report."""
    again = Words("command", "Command", "/command", [found.command], "command")
    sections = [
        Section("found", "What was found", "", [Words("found-list", "", "/pairs", findings(found), "list")]),
        Section("scores", "Scores", _measured(found), [*_figure(found), conditions_table(found)]),
        Section("pairs", "Differences", _PAIRS, [pairs_table(found)]),
        Section("notes", "Notes", "", [Words("notes-list", "", "/notes", found.notes, "list"), again]),
    ]  # fmt: skip
    patched = f", patched by {', '.join(found.patches)}" if found.patches else ""
    settings = "; ".join(f"{name} {_words(value)}" for name, value in found.settings.items())
    foot = f"{found.harness}; {settings}. Intervals are 95 %, over questions."
    return Report(
        _TITLES[found.kind], f"{found.model}{patched} on {found.data}", sections, foot, found
    )


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _measured(found: Conditions) -> str:
    return f"Mean score of the questions by task {found.task} (version {found.task_version})."


def findings(found: Conditions) -> list[str]:
    """Return a sentence per pair."""
    said = []
    for pair in found.pairs:
        change = words.point_interval(pair.difference)
        p = words.p_value(pair.p_holm)
        if pair.verdict == NO_DIFFERENCE:
            said.append(
                f"{pair.first} against {pair.second}: no difference found ({change}, p {p})."
            )
        else:
            better = pair.first if pair.verdict == "first" else pair.second
            said.append(
                f"{pair.first} against {pair.second}: {better} is better ({change}, p {p})."
            )
    return said


def conditions_table(found: Conditions) -> Table:
    """Return a row per condition, and the references."""
    counts = list(dict.fromkeys(name for row in found.conditions for name in row.counts))
    columns = [
        Quantity("condition", "name"),
        Quantity("n", lambda row: str(row.score.n)),
        Quantity("score", "score", drawn=True),
        Quantity(
            "prompt tokens",
            lambda row: None if row.tokens is None else words.value(row.tokens),
            meaning="mean over the questions counted, media included",
        ),
        *(Quantity(name, _counted(name)) for name in counts),
    ]
    rows: list[Condition] = [
        *found.conditions,
        *(Condition(name=name, score=score) for name, score in found.references.items()),
    ]
    return tabulate(
        ("scores-table", "Scores with 95 % intervals", "/conditions"),
        columns,
        rows,
        tone=lambda row: "reference" if row.name in found.references else "",
    )


def _counted(name: str) -> Callable[[Condition], str | None]:
    return lambda row: str(row.counts[name]) if name in row.counts else None


def pairs_table(found: Conditions) -> Table:
    """Return a row per pair."""
    columns = [
        Quantity("condition", "first"),
        Quantity("against", "second"),
        Quantity("difference", "difference", drawn=True),
        Quantity("p (Holm)", lambda row: words.p_value(row.p_holm)),
        Quantity("verdict", _verdict),
    ]
    return tabulate(("pairs-table", "Paired differences", "/pairs"), columns, found.pairs)


def _verdict(pair: Difference) -> Cell:
    if pair.verdict == NO_DIFFERENCE:
        return Cell(NO_DIFFERENCE, tone="same")
    first = pair.verdict == "first"
    return Cell("better" if first else "worse", tone="better" if first else "worse")


def _figure(found: Conditions) -> Sequence[Part]:
    """Draw a line per control over the number of shots, or per corruption over severity; else a row each."""
    along = {"shots": "shots", "corruption": "severity"}.get(found.kind)
    rules = [
        Rule(row.score.value, row.name)
        for row in found.conditions
        if along and along not in row.setting
    ]
    rules += [Rule(score.value, name) for name, score in found.references.items()]
    placed = [row for row in found.conditions if along is None or along in row.setting]
    names = list(dict.fromkeys(_series(found, row) for row in placed))
    points = [
        Point(
            float(row.setting[along]) if along else row.name,
            row.score.value,
            row.score.low,
            row.score.high,
            series=_series(found, row),
            words=f"{row.name}: {words.interval(row.score)}",
        )
        for row in placed
    ]
    chart = Chart(
        "lines" if along else "rows",
        "Scores",
        f"{_TITLES[found.kind]}: {'; '.join(point.words for point in points)}.",
        points,
        [Series(name, number) for number, name in enumerate(names)],
        Axis(along or "", bounds=_room(found, along), whole=bool(along)),
        Axis("score", "share", bounds=(0.0, None)),
        rules=rules,
    )
    return [Figure("scores-drawn", "Scores with 95 % intervals", "/conditions", [chart])]


def _room(found: Conditions, along: str | None) -> tuple[float | None, float | None]:
    """Return ends of the axis with room for points that stand side by side at the first and last place."""
    places = [row.setting[along] for row in found.conditions if along and along in row.setting]
    return (min(places) - 0.25, max(places) + 0.25) if places else (None, None)


def _series(found: Conditions, row: Condition) -> str:
    if found.kind == "corruption":
        return str(row.setting.get("corruption", CLEAN))
    return str(row.setting.get("examples", "no examples")) if found.kind == "shots" else "score"
