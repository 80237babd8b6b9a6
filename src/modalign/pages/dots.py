"""Points: figures in rows with their intervals and chance marks, and clouds in a plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modalign.pages import svg
from modalign.pages.charts import LEGEND, SHAPES, WIDTH, Point

ROW = 30.0
PLANE = 420.0


@dataclass(frozen=True)
class Row:
    """A named figure; ``chance`` is marked by a line of its own."""

    name: str
    point: Point
    chance: float | None = None


def rows(
    given: Sequence[Row],
    *,
    title: str,
    axis: str,
    show: Callable[[float], str],
    bounds: tuple[float, float] | None = None,
) -> str:
    """Draw figures below each other on one horizontal axis.

    Args:
        given: from top to bottom.
        title: what the drawing shows, for readers who do not see it.
        axis: what the axis measures.
        show: a value in words.
        bounds: least extent of the axis.
    """
    longest = max(len(row.name) for row in given)
    left, top, right = longest * svg.CHARACTER + 24, 14.0, WIDTH - 26
    bottom = top + ROW * len(given)
    chances = [row.chance for row in given if row.chance is not None]
    values = [v for row in given for v in (row.point.low, row.point.high)] + chances
    low, high = min([*values, *(bounds or ())]), max([*values, *(bounds or ())])
    x = svg.linear_scale([low, high], left, right, pad=0.03)
    parts = []
    for tick in x.ticks(6):
        parts.append(svg.line(x(tick), top, x(tick), bottom, class_="grid"))
        parts.append(
            svg.text(show(tick), x(tick), bottom + 18, class_="tick", text_anchor="middle")
        )
    parts.append(svg.line(left, bottom, right, bottom, class_="axis"))
    parts += [_row(row, top + ROW * (n + 0.5), left, x, show) for n, row in enumerate(given)]
    middle = (left + right) / 2
    words = axis + ("; dashed: chance" if chances else "")
    parts.append(svg.text(words, middle, bottom + 38, class_="tick", text_anchor="middle"))
    said = ", ".join(f"{row.name} {show(row.point.value)}" for row in given)
    return svg.document(
        WIDTH, bottom + 46, f"{title}: {said}. The table holds every value.", *parts
    )


def _row(row: Row, y: float, left: float, x: svg.Scale, show: Callable[[float], str]) -> str:
    point = row.point
    words = f"{row.name}: {show(point.value)} ({show(point.low)} to {show(point.high)})"
    parts = [
        svg.tag("title", svg.escape(words)),
        svg.text(row.name, left - 12, y + 4, text_anchor="end"),
        svg.line(x(point.low), y, x(point.high), y, class_="bar s0"),
        svg.mark(SHAPES[0], x(point.value), y, 5, class_="mark s0"),
    ]
    if row.chance is not None:
        at = x(row.chance)
        parts.append(
            svg.line(
                at, y - 10, at, y + 10, class_="axis", stroke_dasharray="3 3", stroke_width=1.5
            )
        )
    return svg.tag("g", *parts)


def plane(clouds: Mapping[str, Sequence[tuple[float, float]]], *, title: str, axes: str) -> str:
    """Draw up to four clouds of points on equal scales.

    Args:
        clouds: name -> positions.
        title: what the drawing shows, for readers who do not see it.
        axes: what both axes measure.
    """
    points = [point for cloud in clouds.values() for point in cloud]
    middle = [(min(axis) + max(axis)) / 2 for axis in zip(*points, strict=True)]
    reach = max(
        max(abs(value - middle[i]) for value in axis)
        for i, axis in enumerate(zip(*points, strict=True))
    )
    reach = (reach or 1.0) * 1.05
    left, top = (WIDTH - PLANE) / 2, LEGEND + 14
    x = svg.Scale(middle[0] - reach, middle[0] + reach, left, left + PLANE)
    y = svg.Scale(middle[1] - reach, middle[1] + reach, top + PLANE, top)
    parts = [svg.tag("rect", x=left, y=top, width=PLANE, height=PLANE, fill="none", class_="axis")]
    at = left
    for index, (name, cloud) in enumerate(clouds.items()):
        marks = [
            svg.mark(SHAPES[index], x(a), y(b), 3, class_=f"mark s{index}", opacity="0.45")
            for a, b in cloud
        ]
        parts.append(svg.tag("g", svg.tag("title", svg.escape(name)), *marks))
        parts.append(svg.mark(SHAPES[index], at + 6, LEGEND, 4.2, class_=f"mark s{index}"))
        parts.append(svg.text(name, at + 16, LEGEND + 4))
        at += 34 + len(name) * svg.CHARACTER
    foot = top + PLANE
    parts.append(svg.text(axes, WIDTH / 2, foot + 20, class_="tick", text_anchor="middle"))
    counted = " and ".join(f"{len(cloud)} points of {name}" for name, cloud in clouds.items())
    return svg.document(WIDTH, foot + 28, f"{title}: {counted}.", *parts)
