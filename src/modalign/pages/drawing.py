"""Charts of quantities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modalign.pages.figures import Axis, Chart, Point, Rule, Series
from modalign.pages.parts import Quantity, ends_of, show


def point_of(
    quantity: Quantity, row: Any, at: float | str, series: str, words: str | None = None
) -> Point | None:
    """Return one value as a point; None if the row has none.

    Args:
        quantity: the quantity to draw.
        row: the result to read it from.
        at: its position on the other axis.
        series: the series it belongs to.
        words: its name; default: position and series.
    """
    found = quantity.of(row)
    if found is None:
        return None
    value, ends = ends_of(found)
    low, high = ends or (None, None)
    said = f"{words or f'{series}, {at}'}: {show(found, quantity.unit)}"
    return Point(at, value, low, high, series, said)


def line_chart(
    title: str,
    quantities: Sequence[Quantity],
    rows: Sequence[Any],
    at: Quantity,
    values: Axis,
    *,
    place: Axis | None = None,
    band: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    references: Sequence[Quantity] = (),
) -> Chart:
    """Draw a line per quantity over the rows, with intervals.

    Args:
        title: title of the chart.
        quantities: one line each.
        rows: the results, from left to right.
        at: a row's position on the horizontal axis.
        values: the vertical axis.
        place: the horizontal axis, if title and unit are not enough.
        band: marked part of the horizontal axis.
        rules: reference lines.
        references: grey lines for comparison.
    """
    series = [Series(quantity.name, number) for number, quantity in enumerate(quantities)]
    series += [Series(quantity.name, -1) for quantity in references]
    points, said = [], []
    for quantity in (*quantities, *references):
        own = [
            point
            for row in rows
            if (spot := at.number(row)) is not None
            and (point := point_of(quantity, row, spot, quantity.name, _words(quantity, at, row)))
        ]
        points += own
        if own and quantity in quantities:
            said.append(f"highest {max(own, key=lambda p: p.value).words}")
    whole = all(float(point.at).is_integer() for point in points)
    across = place or Axis(at.name, at.unit, whole=whole)
    words = f"{title}; {'; '.join(said)}."
    return Chart("lines", title, words, points, series, across, values, rules=rules, band=band)


def _words(quantity: Quantity, at: Quantity, row: Any) -> str:
    return f"{quantity.name}, {at.name} {at.text(row)}"


def row_chart(
    title: str,
    quantity: Quantity,
    rows: Sequence[Any],
    name: Quantity,
    values: Axis,
    rules: Sequence[Rule] = (),
    series: Sequence[Series] = (),
    of: Sequence[str] = (),
) -> Chart:
    """Draw a value with its interval per named row.

    Args:
        title: title of the chart.
        quantity: the quantity to draw.
        rows: the results, from top to bottom.
        name: a row's name.
        values: the horizontal axis.
        rules: reference lines.
        series: groups of rows by colour; empty: one colour.
        of: the series of each row.
    """
    names = of or [quantity.name] * len(rows)
    points = [
        point
        for row, group in zip(rows, names, strict=True)
        if (point := point_of(quantity, row, name.text(row), group, name.text(row)))
    ]
    words = f"{title}: {', '.join(point.words for point in points)}."
    shown = list(series) or [Series(quantity.name, 0)]
    return Chart("rows", title, words, points, shown, values=values, rules=rules)
