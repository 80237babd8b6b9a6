"""Charts of quantities: what a table shows in columns, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modalign.pages.figures import Axis, Chart, Point, Rule, Series
from modalign.pages.parts import Quantity, ends_of, show


def point_of(
    quantity: Quantity, row: Any, at: float | str, series: str, words: str | None = None
) -> Point | None:
    """One value as a point; None where the row has none.

    Args:
        quantity: what is drawn.
        row: the result it is read from.
        at: its place on the other axis.
        series: the series it belongs to.
        words: what it is called; place and series where nothing is given.
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
    """A line per quantity over the rows, with intervals.

    Args:
        title: what it shows.
        quantities: a line each.
        rows: the results, from left to right.
        at: where a row stands on the horizontal axis.
        values: the vertical axis.
        place: the horizontal axis, where its title and unit alone do not say it.
        band: part of the horizontal axis to be marked.
        rules: reference lines.
        references: lines in grey, to compare the others with.
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
    """A value with its interval per named row.

    Args:
        title: what it shows.
        quantity: what is drawn.
        rows: the results, from top to bottom.
        name: what a row is called.
        values: the horizontal axis.
        rules: reference lines.
        series: groups of rows that differ in colour; none: all are alike.
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
