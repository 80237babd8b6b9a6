"""Figures as Vega-Lite specifications: points, lines and bars with intervals, for any room's numbers.

Vega (arXiv 1609.08463) draws them in the reader's browser, where it gives tooltips, zoom, text for screen
readers and colours of the page's style sheet. This module decides what a figure shows; Vega lays out scales,
ticks and marks. Colours are the style sheet's variables, so one figure serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SHAPES = ("circle", "square", "triangle-up", "diamond")
COLOURS = 8
LEAST_FACTOR = 4.0  # minimum range of a logarithmic axis: close costs look close
LEAST_SHARE = 0.1  # minimum range of an axis of shares
ROW = 24  # pixels
DODGE = 0.012  # share of the axis between lines with points at one position

Spec = dict[str, Any]

# Unit -> Vega expression of a tick's label; other units are plain numbers.
_TICKS = {
    "share": "format(datum.value * 100, '~r') + ' %'",
    "percent": "format(datum.value, '~r') + ' %'",
    "difference of shares": "format(datum.value * 100, '+~r')",
    "percentage points": "format(datum.value, '+~r')",
    "count": "replace(replace(format(datum.value, '~s'), 'G', 'B'), regexp('([kMBT])$'), ' $1')",
    "flops": "replace(format(datum.value, '~s'), regexp('([a-zA-Z]?)$'), ' $1FLOPs')",
    "bytes": "replace(format(datum.value, '~s'), regexp('([a-zA-Z]?)$'), ' $1B')",
    "seconds": "replace(format(datum.value, '~s'), regexp('([a-zA-Zµ]?)$'), ' $1s')",
}


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: in words.
        unit: format of its ticks.
        log: logarithmic; a value of 0 gets a separate position at the lower end.
        bounds: minimum range; None leaves an end to the values.
        whole: ticks at whole numbers only.
        cut: the upper end; larger values are cut off.
    """

    title: str
    unit: str = ""
    log: bool = False
    bounds: tuple[float | None, float | None] = (None, None)
    whole: bool = False
    cut: float | None = None


@dataclass(frozen=True)
class Series:
    """A named group of points; its number chooses colour and shape.

    Attributes:
        name: name in the legend.
        number: number of colour and shape.
    """

    name: str
    number: int

    @property
    def colour(self) -> str:
        """Return the style sheet's variable."""
        return f"var(--s{self.number % COLOURS})" if self.number >= 0 else "var(--muted)"

    @property
    def shape(self) -> str:
        """Return Vega's name of the mark."""
        return SHAPES[self.number % len(SHAPES)] if self.number >= 0 else SHAPES[0]


@dataclass(frozen=True)
class Point:
    """One measured value with its interval.

    Attributes:
        at: position on the other axis: a number, or the name of a row.
        value: the measured value.
        low, high: ends of its interval; None where there is none.
        series: name of its series.
        words: the tooltip, also read out.
        label: written beside the mark.
        hollow: the mark is drawn hollow.
    """

    at: float | str
    value: float
    low: float | None = None
    high: float | None = None
    series: str = ""
    words: str = ""
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Rule:
    """A reference line across the plot.

    Attributes:
        value: position on the value axis.
        name: what it marks.
    """

    value: float
    name: str


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        kind: ``lines`` (connected points), ``scatter`` (labelled points), ``rows`` (a value per named
            row, the values along the horizontal axis), ``cloud`` (positions on equal scales) or ``stack``
            (parts of a whole per named row).
        title: title, shown if a figure has several plots.
        description: text for screen readers.
        points: in drawing order.
        series: series of the points.
        place: axis of ``at``; of rows its title alone is used.
        values: axis of ``value``.
        rules: reference lines.
        band: marked part of the horizontal axis.
        front: points (at, value) of a staircase, from left to right.
        winner: label of the ringed point.
        height: in pixels; of named rows it follows from their number.
    """

    kind: Literal["lines", "scatter", "rows", "cloud", "stack"]
    title: str
    description: str
    points: Sequence[Point]
    series: Sequence[Series]
    place: Axis = field(default_factory=lambda: Axis(""))
    values: Axis = field(default_factory=lambda: Axis(""))
    rules: Sequence[Rule] = ()
    band: tuple[float, float] | None = None
    front: Sequence[tuple[float, float]] = ()
    winner: str = ""
    height: int = 300

    def spec(self) -> Spec:
        """Return the Vega-Lite specification; the page adds theme and styles."""
        named = self.kind in ("rows", "stack")
        layers = {"rows": _rows, "stack": _stack, "cloud": _cloud}.get(self.kind, _plane)(self)
        return {
            "description": self.description,
            "width": "container",
            "height": ROW * len({point.at for point in self.points}) if named else self.height,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "params": [{"name": "hidden", "value": []}],
            "layer": layers,
        }


# ---------------------------------------------------------------- axes


@dataclass(frozen=True)
class _Scale:
    """Both ends of an axis, its Vega encoding, and the position of moved values."""

    axis: Axis
    low: float
    high: float
    zero: float | None = None  # position of 0 on a logarithmic axis

    def encoding(self, field: str) -> Spec:
        tick = _TICKS.get(self.axis.unit, "format(datum.value, '~r')")
        label: Spec = {"title": self.axis.title or None, "labelExpr": tick}
        if self.axis.whole:
            label |= {"tickMinStep": 1, "labelExpr": f"datum.value % 1 ? '' : {tick}"}
        if self.zero is not None:
            label["labelExpr"] = f"datum.value <= {self.zero * 1.0001} ? '0' : {label['labelExpr']}"
            label["values"] = [self.zero, *_log_ticks(self.zero, self.high)]
        scale: Spec = {"domain": [self.low, self.high], "nice": False}
        scale |= {"type": "log"} if self.axis.log else {"zero": False, "padding": 8}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": label}

    def place(self, value: float | str) -> float | str:
        moved = self.zero is not None and not isinstance(value, str) and value <= 0
        return self.zero if moved and self.zero is not None else value

    def beside(self, value: float, step: float) -> float:
        """Return a position shifted by a share of the axis."""
        if self.axis.log:
            return value * (self.high / self.low) ** step
        return value + (self.high - self.low) * step


def _scale(axis: Axis, values: Iterable[float]) -> _Scale:
    most = math.inf if axis.cut is None else axis.cut
    known = [value for value in values if math.isfinite(value) and value <= most] or [0.0, 1.0]
    return (_logarithmic if axis.log else _linear)(axis, known)


def _linear(axis: Axis, known: Sequence[float]) -> _Scale:
    """Scale to all values and the minimum range, never empty."""
    ends = [bound for bound in axis.bounds if bound is not None]
    low, high = min([*known, *ends]), max([*known, *ends])
    if axis.unit == "share" and high - low < LEAST_SHARE:
        low = min(max(0.0, (low + high - LEAST_SHARE) / 2), 1 - LEAST_SHARE)
        return _Scale(axis, low, low + LEAST_SHARE)
    if low == high:
        room = abs(high) * 0.1 or 1.0
        low, high = low - room * (low not in ends), high + room
    return _Scale(axis, low, high)


def _logarithmic(axis: Axis, known: Sequence[float]) -> _Scale:
    """Scale with at least ``LEAST_FACTOR``; Vega has no position for 0, so one is added."""
    positive = [value for value in known if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    widen = max(1.15, math.sqrt(LEAST_FACTOR / (high / low)))
    low, high = low / widen, high * widen
    if min(known) > 0:
        return _Scale(axis, low, high)
    step = (high / low) ** 0.12
    return _Scale(axis, low / step**1.3, high, low / step)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return decades inside a range, or finer ticks; only needed with a position for 0."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low * 1.5 < f * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks


# ---------------------------------------------------------------- layers


def _layer(name: str, mark: str, encoding: Spec, rows: Sequence[Spec], **more: Any) -> Spec:
    """Build one layer of marks; the page styles it by name."""
    shown = {"filter": "indexof(hidden, datum.series) < 0"}
    return {
        "name": name,
        "mark": {"type": mark, "style": name, "clip": True},
        "encoding": encoding,
        "data": {"values": [{"series": "", **row} for row in rows]},
        "transform": [shown],
        **more,
    }


def _records(points: Sequence[Point], across: _Scale | None = None) -> list[Spec]:
    """Convert points to rows of data; a missing interval is the value itself."""
    return [
        {
            "at": across.place(p.at) if across else p.at,
            "value": p.value,
            "low": p.value if p.low is None else p.low,
            "high": p.value if p.high is None else p.high,
            "series": p.series,
            "words": p.words,
            "label": p.label,
            "hollow": p.hollow,
        }
        for p in points
    ]


def _by_series(chart: Chart, *channels: str) -> Spec:
    names = [s.name for s in chart.series]
    ranges = {"shape": [s.shape for s in chart.series]}
    colours = [s.colour for s in chart.series]
    return {
        channel: {
            "field": "series",
            "type": "nominal",
            "legend": None,
            "scale": {"domain": names, "range": ranges.get(channel, colours)},
        }
        for channel in channels
    }


def _said() -> Spec:
    """Encode the tooltip, which is also read out."""
    return {"tooltip": {"field": "words"}, "description": {"field": "words"}}


def _marks(chart: Chart, encoding: Spec, rows: Sequence[Spec], zoomed: str, style: str) -> Spec:
    """Draw the points, with panning and zooming along some axes."""
    select = {"type": "interval", "encodings": list(zoomed), "zoom": "wheel![event.shiftKey]"}
    own = _by_series(chart, "fill", "stroke", "shape")
    own["fill"] |= {"condition": {"test": "datum.hollow", "value": "var(--surface)"}}
    zoom = [{"name": "zoom", "select": select, "bind": "scales"}]
    made = _layer("points", "point", encoding | own | _said(), rows, params=zoom)
    return made | {"mark": made["mark"] | {"style": style}}


def _interval(chart: Chart, encoding: Spec, rows: Sequence[Spec], along: str) -> Spec:
    """Draw the interval of each point along an axis (``x`` or ``y``)."""
    ends = {along: encoding[along] | {"field": "low"}, f"{along}2": {"field": "high"}}
    return _layer("bars", "rule", encoding | ends | _by_series(chart, "color"), rows)


def _rule_layers(chart: Chart, along: str) -> list[Spec]:
    rows = [{"value": rule.value, "words": rule.name} for rule in chart.rules]
    value = {along: {"field": "value", "type": "quantitative"}}
    return [_layer("rules", "rule", value | _said(), rows)] if rows else []


def _plane(chart: Chart) -> list[Spec]:
    lines = chart.kind == "lines"
    across = _scale(chart.place, [p.at for p in chart.points if not isinstance(p.at, str)])
    up = _scale(chart.values, _ends(chart))
    both = {"x": across.encoding("at"), "y": up.encoding("value")}
    rows = _records(_dodged(chart, across) if lines else chart.points, across)
    layers = _rule_layers(chart, "y")
    if chart.band:
        low, high = chart.band
        band = {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}}
        layers.insert(0, _layer("band", "rect", band, [{"low": low - 0.5, "high": high + 0.5}]))
    if chart.front:
        stairs = [*chart.front, (across.high, chart.front[-1][1])]
        steps = [{"at": across.place(at), "value": value} for at, value in stairs]
        layers.append(_layer("front", "line", both, steps))
    if lines:
        layers.append(_layer("lines", "line", both | _by_series(chart, "color"), rows))
    if any(p.low is not None for p in chart.points):
        layers.append(_interval(chart, both, rows, "y"))
    ringed = [row for row in rows if chart.winner and row["label"] == chart.winner]
    if ringed:
        layers.append(_layer("ring", "point", both, ringed))
    layers.append(_marks(chart, both, rows, "xy", "small" if lines else "points"))
    if any(p.label for p in chart.points):  # the page places them with Vega's label transform
        layers.append(_layer("labels", "text", both | {"text": {"field": "label"}}, rows))
    return layers


def _ends(chart: Chart) -> list[float]:
    points = [v for p in chart.points for v in (p.low, p.value, p.high) if v is not None]
    return [*points, *(rule.value for rule in chart.rules)]


def _dodged(chart: Chart, across: _Scale) -> list[Point]:
    """Shift each series slightly, so that intervals at one position are side by side."""
    names = [s.name for s in chart.series]
    if len(names) < 2 or not any(p.low is not None for p in chart.points):
        return list(chart.points)
    step = min(DODGE, 0.04 / len(names))
    shift = {name: (n - (len(names) - 1) / 2) * step for n, name in enumerate(names)}
    return [replace(p, at=across.beside(float(p.at), shift[p.series])) for p in chart.points]


def _names(chart: Chart) -> Spec:
    order = list(dict.fromkeys(str(p.at) for p in chart.points))
    axis = {"title": chart.place.title or None, "grid": False, "labelLimit": 190, "ticks": False}
    return {"field": "at", "type": "nominal", "sort": order, "axis": axis}


def _rows(chart: Chart) -> list[Spec]:
    both = {"x": _scale(chart.values, _ends(chart)).encoding("value"), "y": _names(chart)}
    rows = _records(chart.points)
    layers = [_interval(chart, both, rows, "x"), _marks(chart, both, rows, "x", "points")]
    return [*_rule_layers(chart, "x"), *layers]


def _stack(chart: Chart) -> list[Spec]:
    order = {s.name: number for number, s in enumerate(chart.series)}
    rows = [row | {"order": order[row["series"]]} for row in _records(chart.points)]
    axis = {"title": chart.values.title or None, "labelExpr": _TICKS["share"]}
    x = {"field": "value", "type": "quantitative", "stack": "normalize", "axis": axis}
    both = {"x": x, "y": _names(chart), "order": {"field": "order"}}
    return [_layer("parts", "bar", both | _by_series(chart, "color") | _said(), rows)]


def _cloud(chart: Chart) -> list[Spec]:
    axes = ([float(p.at) for p in chart.points], [p.value for p in chart.points])
    reach = max(max(values) - min(values) for values in axes) * 0.525 or 1.0
    middles = [(max(values) + min(values)) / 2 for values in axes]
    x, y = (
        _Scale(axis, middle - reach, middle + reach)
        for axis, middle in zip((chart.place, chart.values), middles, strict=True)
    )
    both = {"x": x.encoding("at"), "y": y.encoding("value")}
    return [_marks(chart, both, _records(chart.points), "xy", "dots")]
