"""The report of ``diagnose``: explanations, charts and tables of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from modalign.evaluation.diagnosis.results import (
    DIAGNOSTICS,
    Diagnosis,
    Diagnostic,
    ModalityDiagnosis,
)
from modalign.numbers.estimate import Estimate
from modalign.numbers.words import ends, in_unit, interval, p_value, percent, points, seconds
from modalign.pages.drawing import line_chart, row_chart
from modalign.pages.figures import Axis, Chart, Point, Series
from modalign.pages.parts import Figure, Part, Quantity, Section, Table, Words, tabulate, text_rows
from modalign.pages.report import Report

_AXES = {"share": "", "difference of shares": "percentage points", "nats": "nats"}


class Named(NamedTuple):
    """A figure with its name."""

    name: str
    figure: Estimate


def _chance(named: Named) -> str | None:
    """Chance, and its 97.5 % quantile if known."""
    figure = named.figure
    if figure.chance is None:
        return None
    words, high = in_unit(figure.chance, figure.unit), figure.chance_high
    return words if high is None else f"{words} (up to {in_unit(high, figure.unit)})"


COLUMNS = (
    Quantity("figure", "name"),
    Quantity("value", lambda named: in_unit(named.figure.value, named.figure.unit)),
    Quantity("95 % interval", lambda named: ends(named.figure) if named.figure.bounded else None),
    Quantity("chance", _chance),
    Quantity("p", lambda named: None if named.figure.p is None else p_value(named.figure.p)),
    Quantity("n", lambda named: str(named.figure.n)),
)


def figures_table(found: Diagnostic, name: str = "figures", source: str = "/modalities") -> Table:
    """Return a table of a diagnostic's figures; it has no rows if the diagnostic is undefined."""
    rows = [Named(*item) for item in found.figures.items()]
    undefined = f": not defined, {found.undefined}" if found.undefined else ""
    return tabulate((name, f"{found.title}{undefined}", source), COLUMNS, rows)


def diagnosis_report(found: Diagnosis) -> Report:
    """Build the report of a diagnosis."""
    sections = []
    for place, each in enumerate(found.modalities):
        source = f"/modalities/{place}"
        several = len(found.modalities) > 1
        said = Words(f"says-{place}", "", f"{source}/diagnostics", sentences(each), "list")
        sections.append(Section(f"about-{place}", _about(each), "", [said]))
        for number, diagnostic in enumerate(each.diagnostics):
            title = f"{diagnostic.title}: {each.modality}" if several else diagnostic.title
            name = f"{diagnostic.name}-{place}"
            parts = _parts(name, title, f"{source}/diagnostics/{number}", diagnostic)
            sections.append(Section(name, title, DIAGNOSTICS[diagnostic.name]["lead"], parts))
    foot = (
        f"modalign {found.version}; {found.command}; seed {found.seed}; {found.device}, {found.dtype}; "
        f"{seconds(found.seconds)}. Intervals are 95 %, over records."
    )
    patched = f", patched by {', '.join(found.patches)}" if found.patches else ""
    lead = f"{found.model}{patched} on {found.records} of {found.available} records of {found.data}"
    return Report("The modality gap of a model", lead, sections, foot, found)


def _parts(name: str, title: str, source: str, found: Diagnostic) -> list[Part]:
    """Figures of a diagnostic, its tables and its notes."""
    if found.undefined:
        return [
            Words(
                name + "-none",
                "",
                f"{source}/undefined",
                [f"Not defined: {found.undefined}."],
                "list",
            )
        ]
    charts = _charts(found)
    parts: list[Part] = [
        Figure(f"{name}-figure", f"{title}, drawn", source, charts, least=420) for _ in charts[:1]
    ]
    figures = figures_table(found, f"{name}-table", f"{source}/figures")
    parts.append(replace(figures, caption=f"{title}, figures"))
    if found.curves:
        parts.append(_layers(name, f"{title}, layer by layer", f"{source}/curves", found))
    if found.words:
        parts.append(_words(f"{name}-words", f"{title}, words", f"{source}/words", found))
    notes = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in found.notes]
    if notes:
        parts.append(Words(f"{name}-notes", "", f"{source}/notes", notes, "note"))
    return parts


def _charts(found: Diagnostic) -> list[Chart]:
    """What is drawn of a diagnostic."""
    if found.name == "image_gain":
        return [
            _rows(found, "accuracy", "Accuracy by medium", (0.0, 1.0)),
            _rows(found, "KL", "Divergence of the answer's distribution", (0.0, None)),
        ]
    if found.name == "modality_gap":
        return [_cloud(found)]
    if found.name == "norm_ratio":
        return [_rows(found, "length", "Mean length at layer 0", (0.0, None))]
    return [_curve(name, curve, found.name == "mir") for name, curve in found.curves.items()]


def _rows(
    found: Diagnostic, prefix: str, caption: str, bounds: tuple[float | None, float | None]
) -> Chart:
    chosen = [Named(*item) for item in found.figures.items() if item[0].startswith(prefix)]
    unit = chosen[0].figure.unit
    name = Quantity("name", lambda n: n.name.removeprefix(f"{prefix}, ").removeprefix(f"{prefix} "))
    quantity = Quantity(caption, "figure", unit)
    return row_chart(
        caption, quantity, chosen, name, Axis(_AXES.get(unit, ""), unit, bounds=bounds)
    )


def _cloud(found: Diagnostic) -> Chart:
    """Both clouds of tokens in the plane of their largest spread."""
    series = [Series(name, number) for number, name in enumerate(found.points)]
    spots = [
        Point(x, y, series=name, words=name)
        for name, cloud in found.points.items()
        for x, y in cloud
    ]
    counted = " and ".join(f"{len(cloud)} points of {name}" for name, cloud in found.points.items())
    title = "Normalised tokens on their two directions of largest spread"
    first, second = (Axis(f"{which} principal component") for which in ("first", "second"))
    return Chart("cloud", title, f"{title}: {counted}.", spots, series, first, second, height=420)


def _curve(name: str, curve: Sequence[Estimate], logarithmic: bool) -> Chart:
    """A figure over layers with chance; on a logarithmic axis intervals reach at most one decade down."""
    unit = curve[0].unit
    caption = f"{name[0].upper()}{name[1:]} by layer" + (", logarithmic" if logarithmic else "")

    def own(row: tuple[int, Estimate]) -> Estimate:
        figure = row[1]
        least = max(figure.low, figure.value / 10) if logarithmic else figure.low
        return figure.model_copy(update={"low": least})

    known = all(figure.chance is not None for figure in curve)
    layer = Quantity("layer", lambda row: row[0], "whole")
    values = Axis(_AXES.get(unit, name), unit, logarithmic, (None if logarithmic else 0.0, None))
    rows = list(enumerate(curve))
    references = [Quantity("chance", lambda row: row[1].chance, unit)] if known else []
    return line_chart(caption, [Quantity(name, own)], rows, layer, values, references=references)


def _layers(name: str, caption: str, source: str, found: Diagnostic) -> Table:
    """Every curve as numbers."""
    columns = [Quantity("layer", lambda row: str(row[0]))]
    for curve in found.curves:
        columns += [_of_curve(curve, drawn=True), _of_curve(curve, drawn=False)]
    layers = zip(*found.curves.values(), strict=True)
    rows = [(layer, dict(zip(found.curves, row, strict=True))) for layer, row in enumerate(layers)]
    return tabulate((f"{name}-layers", caption, source), columns, rows, folded=True)


def _of_curve(curve: str, drawn: bool) -> Quantity:
    """A curve's own figure in a row of layers, or its chance."""

    def value(row: tuple[int, dict[str, Estimate]]) -> str | None:
        figure = row[1][curve]
        return interval(figure) if drawn else _chance(Named(curve, figure))

    return Quantity(curve if drawn else f"{curve}, chance", value)


def _words(name: str, caption: str, source: str, found: Diagnostic) -> Table:
    """The likeliest tokens of each layer with their share of positions."""
    most = max(map(len, found.words))
    rows = []
    for layer, words in enumerate(found.words):
        cells = [f"{word.token!r} {word.share:.0%}" for word in words]
        rows.append([str(layer), *cells, *[""] * (most - len(cells))])
    ranks = ["likeliest token", *[f"{place}." for place in range(2, most + 1)]]
    return Table(name, caption, source, ["layer", *ranks], text_rows(rows), folded=True)


def _about(found: ModalityDiagnosis) -> str:
    return f"{found.modality.capitalize()}: {found.encoder}, {found.connector} ({found.enters})"


def sentences(found: ModalityDiagnosis) -> list[str]:
    """Summarise the figures in a few sentences; a number and its sign stay on one line."""
    looking = found.diagnostic("image_gain")
    right = next(iter(looking.figures.values()))
    said = [
        f"{found.records} records about {found.media} media; {percent(right.value)} answered rightly."
    ]
    for name in ("blank", "shuffled"):
        gain = looking.figures.get(f"gain over {name}")
        if gain is None or not gain.bounded:
            continue
        verdict = "it uses the medium" if gain.sign > 0 else "no use of the medium is shown"
        said.append(
            f"With {name} media accuracy changes by {points(-gain.value)} points "
            f"(95 % {points(-gain.high)} to {points(-gain.low)}): {verdict}."
        )
    for name, what in (
        ("encoder_similarity", "The encoder"),
        ("connector_similarity", "The connector"),
    ):
        best = next(iter(found.diagnostic(name).figures.values()), None)
        if best is not None and best.p is not None:
            than = "more than" if best.p < 0.05 else "no more than"
            said.append(
                f"{what}'s neighbourhoods agree with the text's {than} random pairing does: "
                f"{percent(best.value)} of neighbours against {percent(best.chance)} (p {p_value(best.p)})."
            )
    missing = [each.title for each in found.diagnostics if each.undefined]
    if missing:
        said.append(f"Not defined here: {', '.join(missing)}.")
    return [sentence.replace(" %", "\u00a0%") for sentence in said]
