"""The report of a suite: what changed, figures of all rows, surface rules, orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modalign.evaluation.suites.parts import CHANCE, MAJORITY
from modalign.evaluation.suites.results import RANDOM, Line, Paired, Suite
from modalign.numbers import words
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE
from modalign.pages.figures import Axis, Chart, Point, Series
from modalign.pages.parts import Cell, Figure, Part, Quantity, Section, Table, Tone, Words, tabulate
from modalign.pages.report import Report

_REFERENCES = (RANDOM, CHANCE, MAJORITY)
_TONES: dict[str, Tone] = {"better": "better", "worse": "worse"}


def suite_report(found: Suite) -> Report:
    """Build the report."""
    notes: list[Part] = [Words("notes-list", "", "/notes", found.notes, "list")]
    again = Words("command", "Command", "/command", [found.command], "command")
    pairs: list[Part] = [pairs_table(found)] if any(line.pairs for line in found.lines) else []
    sections = [
        Section(
            "found",
            "What was found",
            "",
            [Words("found-list", "", "/lines", findings(found), "list")],
        ),
        Section("figures", "Figures", _FIGURES, [*_figure(found), figures_table(found)]),
        Section("pairs", "Differences", _PAIRS, pairs),
        Section("rules", "Surface rules", _RULES, [*_rules(found)]),
        Section("orders", "Orders of the options", _ORDERS, [*_orders(found)]),
        Section("notes", "Notes", "", [*notes, again]),
    ]
    models = ", ".join(f"{name}: {folder}" for name, folder in found.models.items())
    patched = f", patched by {', '.join(found.patches)}" if found.patches else ""
    foot = f"{found.harness}; seed {found.settings.get('seed')}. Intervals are 95 %, over items."
    return Report(
        "What the language model can do without media",
        f"Suite {found.suite} of {found.data}. {models}{patched}",
        [section for section in sections if section.parts],
        foot,
        found,
    )


_FIGURES = (
    "Options are scored by the summed log-likelihood of their tokens, and beside it per byte. Random weights: "
    "models of the same shape, never trained. Lower is better where it says so."
)
_PAIRS = (
    "The model minus the other on the same items; p-values are corrected over all tests of this page (Holm), "
    "McNemar's are exact and uncorrected. “No difference found” does not mean “equal”: the interval says how "
    "large one might be."
)
_RULES = "What is reached by looking at surfaces alone. A score below these says nothing about truth or morals."
_ORDERS = (
    "Lowest and highest figure over the orders in which options stood. Where options are scored one by one, the "
    "order settles ties only, and a spread of zero means that there were none; under letters it is shown."
)


def findings(found: Suite) -> list[str]:
    """Return a sentence per tested line, and one per line that a surface rule beats."""
    said = []
    for line in found.lines:
        for other, pair in line.pairs.items():
            change = words.interval(pair.difference.difference)
            p = words.p_value(pair.difference.p_holm)
            said.append(
                f"{line.part}, {line.measure}: {pair.verdict} against {other} ({change}, p {p})."
            )
    model = next(iter(found.models))
    for line in found.lines:
        rules = {name: figure for name, figure in _rule_rows(line).items() if name != MAJORITY}
        if not (line.headline and rules):
            continue
        best = max(rules, key=lambda name: rules[name].value)
        if rules[best].value > line.rows[model].value:
            said.append(
                f"{line.part}, {line.measure}: the rule “{best}” reaches {words.value(rules[best])}, more than "
                f"the model's {words.value(line.rows[model])}."
            )
    changed = [pair for line in found.lines for pair in line.pairs.values()]
    if changed and all(pair.verdict == NO_DIFFERENCE for pair in changed):
        said.insert(0, f"No significant change in any of {len(changed)} tests.")
    return said or ["Nothing was tested: no other model was given (--against)."]


def _name(line: Line) -> str:
    return f"{line.measure}, lower is better" if line.lower_is_better else line.measure


def figures_table(found: Suite) -> Table:
    """Return a row per measure, a column per model and reference."""
    columns = [
        Quantity("part", "part"),
        Quantity("measure", _name),
        Quantity("n", lambda line: f"{line.n} {line.over}"),
        *(Quantity(name, _row(name)) for name in (*found.models, *_REFERENCES)),
    ]
    caption = "Figures with 95 % intervals"
    return tabulate(("figures-table", caption, "/lines"), columns, found.lines)


def _row(name: str) -> Callable[[Line], Estimate | None]:
    return lambda line: line.rows.get(name)


def _pairs(found: Suite) -> list[tuple[Line, Paired]]:
    return [(line, pair) for line in found.lines for pair in line.pairs.values()]


def pairs_table(found: Suite) -> Table:
    """Return a row per test."""
    columns = [
        Quantity("part", lambda row: row[0].part),
        Quantity("measure", lambda row: _name(row[0])),
        Quantity("against", lambda row: row[1].difference.second),
        Quantity("difference", lambda row: row[1].difference.difference, drawn=True),
        Quantity("p (Holm)", lambda row: words.p_value(row[1].difference.p_holm)),
        Quantity("only the model right", lambda row: _count(row[1].only_model)),
        Quantity("only the other right", lambda row: _count(row[1].only_other)),
        Quantity(
            "McNemar p",
            lambda row: None if row[1].mcnemar is None else words.p_value(row[1].mcnemar),
        ),
        Quantity(
            "verdict", lambda row: Cell(row[1].verdict, tone=_TONES.get(row[1].verdict, "same"))
        ),
    ]
    return tabulate(("pairs-table", "Paired differences", "/lines"), columns, _pairs(found))


def _count(number: int | None) -> str | None:
    return None if number is None else str(number)


def _rule_rows(line: Line) -> dict[str, Estimate]:
    """Return the rows of rules."""
    return {name: line.rows[name] for name in line.rules}


def _rules(found: Suite) -> list[Part]:
    lines = [line for line in found.lines if line.rules and line.headline]
    if not lines:
        return []
    names = list(dict.fromkeys(name for line in lines for name in line.rules))
    model = next(iter(found.models))
    columns = [
        Quantity("part", "part"),
        Quantity("measure", _name),
        Quantity(model, _row(model)),
        *(Quantity(name, _row(name)) for name in names),
    ]
    return [tabulate(("rules-table", "Rules that look at surfaces", "/lines"), columns, lines)]


def _orders(found: Suite) -> list[Part]:
    lines = [line for line in found.lines if line.orders]
    if not lines:
        return []
    names = list(dict.fromkeys(name for line in lines for name in line.orders))
    columns = [
        Quantity("part", "part"),
        Quantity("measure", _name),
        *(Quantity(name, _spread(name)) for name in names),
    ]
    return [tabulate(("orders-table", "Lowest to highest over orders", "/lines"), columns, lines)]


def _spread(name: str) -> Callable[[Line], str | None]:
    def said(line: Line) -> str | None:
        spread = line.orders.get(name)
        if spread is None:
            return None
        return f"{words.percent(spread.low).removesuffix(' %')} to {words.percent(spread.high)}"

    return said


def _figure(found: Suite) -> Sequence[Part]:
    """Draw the tested shares of all models, with chance."""
    lines = [line for line in found.lines if line.headline and not line.lower_is_better]
    if not lines:
        return []
    names = [*found.models, RANDOM, CHANCE]
    series = [Series(name, number) for number, name in enumerate(names)]
    points = []
    for line in lines:
        for name in names:
            figure = line.rows.get(name)
            if figure is None:
                continue
            known = figure.bounded and figure.interval != "exact"
            said = f"{line.part}, {name}: {words.interval(figure)}"
            points.append(
                Point(
                    line.part,
                    figure.value,
                    figure.low if known else None,
                    figure.high if known else None,
                    series=name,
                    words=said,
                    hollow=name in (RANDOM, CHANCE),
                )
            )
    chart = Chart(
        "rows",
        "Tested shares",
        "A row per part: shares right of every model, of random weights and of chance.",
        points,
        series,
        Axis(""),
        Axis("share right", "share", bounds=(0.0, None)),
    )
    return [Figure("figures-drawn", "Tested shares with 95 % intervals", "/lines", [chart])]
