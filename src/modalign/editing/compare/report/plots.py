"""The report's drawings: a score against the number of edits, one panel per score and mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modalign.editing.compare.results import EditComparison, Mode
from modalign.numbers.estimate import Estimate
from modalign.pages import svg

WIDTH, HEIGHT = 480.0, 292.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 468.0, 30.0, 240.0
# Marks of pages.svg by the names it knows: circle, square, triangle, diamond.
SHAPES = ("converter", "perceiver", "tool", "data")
DODGE = 9.0  # between the methods of one size, so that their intervals stand side by side


def kind_of(comparison: EditComparison, method: str) -> str:
    """The style class of a method: its place in the list."""
    return f"m{[info.name for info in comparison.methods].index(method) % 8}"


def shape_of(comparison: EditComparison, method: str) -> str:
    """The shape of a method's marks."""
    place = [info.name for info in comparison.methods].index(method)
    return SHAPES[place % len(SHAPES)]


def score_panel(comparison: EditComparison, mode: Mode, name: str) -> str | None:
    """One score of all methods against the number of edits (logarithmic), with intervals."""
    lines = {
        info.name: [
            (size, point.metrics[name])
            for size in comparison.sizes
            if (point := comparison.point(info.name, mode, size)) and name in point.metrics
        ]
        for info in comparison.methods
    }
    lines = {method: line for method, line in lines.items() if line}
    if not lines:
        return None
    parts = [*_frame(comparison, name), *_reference_lines(comparison, name)]
    for number, (method, line) in enumerate(lines.items()):
        shift = (number - (len(lines) - 1) / 2) * DODGE
        parts.append(_line(comparison, method, line, shift))
    last = {
        comparison.title_of(m): f"{line[-1][1].value:.1f} at {line[-1][0]}"
        for m, line in lines.items()
    }
    words = ", ".join(f"{title} {value}" for title, value in last.items())
    label = f"{name} against the number of edits, {mode}: {words}. The table holds every value."
    return svg.document(WIDTH, HEIGHT, label, *parts)


def _x(comparison: EditComparison, size: int) -> float:
    """Position of a number of edits; a single one stands in the middle."""
    low, high = math.log10(comparison.sizes[0]), math.log10(comparison.sizes[-1])
    share = (math.log10(size) - low) / (high - low) if high > low else 0.5
    return LEFT + 34 + share * (RIGHT - LEFT - 68)


def _y(value: float) -> float:
    return BOTTOM - value / 100 * (BOTTOM - TOP)


def _frame(comparison: EditComparison, name: str) -> list[str]:
    parts = [svg.text(name, LEFT, 17, class_="title")]
    for tick in (0, 25, 50, 75, 100):
        parts.append(svg.line(LEFT, _y(tick), RIGHT, _y(tick), class_="grid"))
        place = {"class_": "tick", "text_anchor": "end"}
        parts.append(svg.text(str(tick), LEFT - 7, _y(tick) + 4, **place))
    for size in comparison.sizes:
        x = _x(comparison, size)
        parts.append(svg.line(x, BOTTOM, x, BOTTOM + 5, class_="axis"))
        parts.append(svg.text(f"{size:,}", x, BOTTOM + 19, class_="tick", text_anchor="middle"))
    middle = (LEFT + RIGHT) / 2
    parts.append(svg.line(LEFT, BOTTOM, RIGHT, BOTTOM, class_="axis"))
    parts.append(
        svg.text("edits (logarithmic)", middle, BOTTOM + 41, class_="tick", text_anchor="middle")
    )
    return parts


def _reference_lines(comparison: EditComparison, name: str) -> list[str]:
    parts = []
    unedited = [
        (_x(comparison, r.size), _y(r.metrics[name].value))
        for r in comparison.references
        if r.size is not None and name in r.metrics
    ]
    if unedited:
        ends = [(LEFT, unedited[0][1]), *unedited, (RIGHT, unedited[-1][1])]
        parts.append(svg.polyline(ends, class_="unedited"))
    for reference in comparison.references:
        if reference.size is None and name in reference.metrics:
            y = _y(reference.metrics[name].value)
            parts.append(svg.line(LEFT, y, RIGHT, y, class_="chance"))
    return parts


def _line(
    comparison: EditComparison, method: str, line: Sequence[tuple[int, Estimate]], shift: float
) -> str:
    kind, shape = kind_of(comparison, method), shape_of(comparison, method)
    points = [(_x(comparison, size) + shift, metric) for size, metric in line]
    parts = [svg.polyline([(x, _y(m.value)) for x, m in points], class_=f"run {kind}")]
    for (x, metric), (size, _) in zip(points, line, strict=True):
        words = (
            f"{comparison.title_of(method)}, {size} edits: {metric.value:.1f} "
            f"({metric.low:.1f} to {metric.high:.1f}), n = {metric.n}"
        )
        parts.append(
            svg.tag(
                "g",
                svg.tag("title", svg.escape(words)),
                svg.line(x, _y(metric.low), x, _y(metric.high), class_=f"bar {kind}"),
                svg.mark(shape, x, _y(metric.value), 4.6, class_=f"mark {kind}"),
            )
        )
    return svg.tag("g", *parts)


def glyph(comparison: EditComparison, method: str) -> str:
    """A method's mark beside its name."""
    mark = svg.mark(
        shape_of(comparison, method), 8, 8, 5, class_=f"mark {kind_of(comparison, method)}"
    )
    return svg.tag(
        "svg", mark, viewBox="0 0 16 16", width=14, height=14, class_="glyph", aria_hidden="true"
    )
