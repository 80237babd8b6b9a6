"""Figures as Vega-Lite specifications: points, lines and bars with intervals, for any room's numbers.

Vega (arXiv 1609.08463) draws them in the reader's browser, where it gives tooltips, zoom, text for screen
readers and colours of the page's style sheet. What a figure shows is decided here; how scales, ticks and
marks are laid out is Vega's affair. Colours are the style sheet's variables, so one drawing serves light and
dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

SHAPES = ("circle", "square", "triangle-up", "diamond")
COLOURS = 8
LEAST_FACTOR = 4.0  # of a logarithmic axis: costs that are close look close
LEAST_SHARE = 0.1  # of an axis of shares
ROW = 24  # pixels
DODGE = 0.012  # of the axis, between lines whose points stand at one place

Spec = dict[str, Any]
SHOWN: Spec = {"filter": "indexof(hidden, datum.series) < 0"}

# Unit -> how a tick is written, as an expression of Vega; other units are plain numbers.
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
    """What an axis measures.

    Attributes:
        title: in words.
        unit: how its ticks are written.
        log: logarithmic; a value of 0 gets a place of its own at the lower end.
        bounds: least extent; None leaves an end to the values.
        whole: ticks at whole numbers only.
        cut: the upper end, where larger values are cut off.
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
        name: as the legend shows it.
        number: of the colour and the shape.
    """

    name: str
    number: int

    @property
    def colour(self) -> str:
        """The style sheet's variable."""
        return f"var(--s{self.number % COLOURS})" if self.number >= 0 else "var(--muted)"

    @property
    def shape(self) -> str:
        """Vega's name of the mark."""
        return SHAPES[self.number % len(SHAPES)] if self.number >= 0 else SHAPES[0]


@dataclass(frozen=True)
class Point:
    """One measured value with its interval.

    Attributes:
        at: where it stands on the other axis: a number, or the name of a row.
        value: itself.
        low, high: ends of its interval; None where there is none.
        series: name of its series.
        words: what is read out and shown under the pointer.
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
        value: where it stands on the axis of values.
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
        title: what it shows; it stands above the plot where a figure has several.
        description: for readers who do not see it.
        points: in drawing order.
        series: those that the points belong to.
        place: axis of ``at``; of rows its title alone is used.
        values: axis of ``value``.
        rules: reference lines.
        band: part of the horizontal axis to be marked.
        front: points (at, value) of a staircase, from left to right.
        winner: label of the point to be ringed.
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
        """The Vega-Lite specification; the page adds the theme."""
        layers = {
            "rows": _rows,
            "stack": _stack,
            "cloud": _cloud,
        }.get(self.kind, _plane)(self)
        height = self.height
        if self.kind in ("rows", "stack"):
            height = ROW * len({point.at for point in self.points})
        return {
            "description": self.description,
            "width": "container",
            "height": height,
            "autosize": {"type": "fit-x", "contains": "padding"},
            "params": [{"name": "hidden", "value": []}],
            "layer": [
                layer | {"transform": [SHOWN, *layer.get("transform", [])]} for layer in layers
            ],
        }


# ---------------------------------------------------------------- axes


def _tick(unit: str) -> str:
    return _TICKS.get(unit, "format(datum.value, '~r')")


def _scale(axis: Axis, values: Sequence[float]) -> tuple[Spec, Spec, dict[float, float]]:
    """Scale, axis and the places of values that are moved (0 on a logarithmic axis)."""
    label: Spec = {"title": axis.title or None, "labelExpr": _tick(axis.unit)}
    if axis.whole:
        label |= {"tickMinStep": 1, "format": "d"}
    most = math.inf if axis.cut is None else axis.cut
    known = [value for value in values if math.isfinite(value) and value <= most] or [0.0, 1.0]
    if axis.log:
        if axis.whole:
            label["labelExpr"] = f"datum.value % 1 ? '' : {label['labelExpr']}"
        return _logarithmic(label, known)
    low, high = _extent(axis, known)
    return {"domain": [low, high], "nice": not axis.whole, "zero": False}, label, {}


def _extent(axis: Axis, known: Sequence[float]) -> tuple[float, float]:
    """Both ends of a linear axis: all values, the least extent, and never an empty range."""
    low, high = (
        pick([*known, *([] if bound is None else [bound])])
        for pick, bound in zip((min, max), axis.bounds, strict=True)
    )
    room = (high - low) * 0.03
    if axis.unit == "share":
        low, high = max(0.0, low - room), min(1.0, high + room)
        if high - low < LEAST_SHARE:
            middle = min(max((low + high) / 2, LEAST_SHARE / 2), 1 - LEAST_SHARE / 2)
            low, high = middle - LEAST_SHARE / 2, middle + LEAST_SHARE / 2
        return low, high
    if high == low:
        room = abs(high) * 0.1 or 1.0
    return low - (room if low != axis.bounds[0] else 0), high + (
        room if high != axis.bounds[1] else 0
    )


def _logarithmic(label: Spec, known: Sequence[float]) -> tuple[Spec, Spec, dict[float, float]]:
    """A logarithmic scale of at least ``LEAST_FACTOR``; Vega's has no place for 0, so one is made."""
    positive = [value for value in known if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    widen = max(1.15, math.sqrt(LEAST_FACTOR / (high / low)))
    low, high = low / widen, high * widen
    moved: dict[float, float] = {}
    if min(known) <= 0:
        step = (high / low) ** 0.12
        zero, low = low / step, low / step**1.3
        moved = dict.fromkeys((value for value in known if value <= 0), zero)
        label = label | {
            "labelExpr": f"datum.value <= {zero * 1.0001} ? '0' : {label['labelExpr']}",
            "values": [zero, *_log_ticks(zero * step, high)],
        }
    return {"type": "log", "domain": [low, high], "nice": False}, label, moved


def _log_ticks(low: float, high: float) -> list[float]:
    """Decades inside a range, finer where they are few; asked for only beside a place for 0."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks


# ---------------------------------------------------------------- layers


def _records(points: Sequence[Point], places: dict[float, float]) -> list[Spec]:
    """The points as rows of data; an interval without ends is the value itself."""
    return [
        {
            "at": places.get(p.at, p.at) if isinstance(p.at, float | int) else p.at,
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


def _colour(chart: Chart, channel: str = "color") -> Spec:
    names, colours = zip(*((s.name, s.colour) for s in chart.series), strict=True)
    scale = {"domain": list(names), "range": list(colours)}
    return {channel: {"field": "series", "type": "nominal", "scale": scale, "legend": None}}


def _shape(chart: Chart) -> Spec:
    scale = {"domain": [s.name for s in chart.series], "range": [s.shape for s in chart.series]}
    return {"shape": {"field": "series", "type": "nominal", "scale": scale, "legend": None}}


def _marks(chart: Chart, encoding: Spec, zoomed: Sequence[str]) -> Spec:
    """The points themselves: named, so that labels keep clear of them and keys can walk along them."""
    fill = {
        "condition": {"test": "datum.hollow", "value": "var(--surface)"},
        **_colour(chart)["color"],
    }
    own = {"fill": fill, **_colour(chart, "stroke"), **_shape(chart)}
    said = {"tooltip": {"field": "words"}, "description": {"field": "words"}}
    return {
        "name": "points",
        "mark": {"type": "point", "filled": True, "size": 75, "strokeWidth": 1.6, "opacity": 1},
        "params": [
            {
                "name": "zoom",
                "select": {
                    "type": "interval",
                    "encodings": list(zoomed),
                    "zoom": "wheel![event.shiftKey]",
                },
                "bind": "scales",
            }
        ],
        "encoding": encoding | own | said,
    }


def _interval(chart: Chart, along: str, other: Spec, value: Spec) -> Spec:
    """The interval of each point along an axis (``x`` or ``y``)."""
    return {
        "name": "bars",
        "mark": {"type": "rule", "strokeWidth": 2.2, "opacity": 0.5, "aria": False},
        "encoding": other
        | {along: value | {"field": "low"}, f"{along}2": {"field": "high"}}
        | _colour(chart),
    }


def _plane(chart: Chart) -> list[Spec]:
    """Lines and scatter: numbers on both axes."""
    lines = chart.kind == "lines"
    spots = [p.at for p in chart.points if isinstance(p.at, float | int)]
    ends = [v for p in chart.points for v in (p.low, p.value, p.high) if v is not None]
    across, across_axis, moved = _scale(chart.place, spots)
    up, up_axis, _ = _scale(chart.values, [*ends, *(rule.value for rule in chart.rules)])
    up |= {"padding": 6, "nice": False}  # room for marks at the ends
    if chart.kind == "scatter" and not chart.place.log:
        across |= {"padding": 14, "nice": False}
    points = _dodged(chart, across) if lines else list(chart.points)
    x: Spec = {"field": "at", "type": "quantitative", "scale": across, "axis": across_axis}
    y: Spec = {"field": "value", "type": "quantitative", "scale": up, "axis": up_axis}
    layers = [*_band(chart), *_rule_layers(chart, "y")]
    if chart.front:
        stairs = [
            {"at": moved.get(at, at), "value": value, "series": ""} for at, value in chart.front
        ]
        end = across["domain"][1]
        stairs.append({"at": end, "value": chart.front[-1][1], "series": ""})
        layers.append(
            {
                "name": "front",
                "data": {"values": stairs},
                "mark": {
                    "type": "line",
                    "interpolate": "step-after",
                    "strokeDash": [6, 4],
                    "color": "var(--front)",
                    "aria": False,
                    "clip": True,
                },
                "encoding": {"x": x, "y": y},
            }
        )
    data = {"data": {"values": _records(points, moved)}}
    if lines:
        line = {"type": "line", "strokeWidth": 2, "opacity": 0.8, "aria": False, "clip": True}
        layers.append({"mark": line, "encoding": {"x": x, "y": y} | _colour(chart)} | data)
    if any(p.low is not None for p in points):
        layers.append(_interval(chart, "y", {"x": x}, y) | data)
    marks = _marks(chart, {"x": x, "y": y}, ("x", "y")) | data
    if lines:
        marks["mark"] |= {"size": 45, "clip": True}
    layers.append(marks)
    if any(p.label for p in points):
        layers.append(_labels({"x": x, "y": y}) | data)
    if chart.winner:
        layers.insert(-2, _ring(chart, {"x": x, "y": y}) | data)
    return layers


def _dodged(chart: Chart, scale: Spec) -> list[Point]:
    """Points with each series moved a little, so that intervals at one place stand side by side."""
    names = [s.name for s in chart.series]
    if len(names) < 2 or not any(p.low is not None for p in chart.points):
        return list(chart.points)
    low, high = scale["domain"]
    found = []
    for point in chart.points:
        step = (names.index(point.series) - (len(names) - 1) / 2) * min(DODGE, 0.04 / len(names))
        at = float(point.at)
        at = at * (high / low) ** step if chart.place.log else at + (high - low) * step
        found.append(replace(point, at=at))
    return found


def _band(chart: Chart) -> list[Spec]:
    if chart.band is None:
        return []
    low, high = chart.band
    return [
        {
            "data": {"values": [{"low": low - 0.5, "high": high + 0.5, "series": ""}]},
            "mark": {"type": "rect", "color": "var(--accent-soft)", "opacity": 1, "aria": False},
            "encoding": {
                "x": {"field": "low", "type": "quantitative"},
                "x2": {"field": "high"},
            },
        }
    ]


def _rule_layers(chart: Chart, along: str) -> list[Spec]:
    if not chart.rules:
        return []
    rows = [{"value": r.value, "words": r.name, "series": ""} for r in chart.rules]
    return [
        {
            "data": {"values": rows},
            "mark": {
                "type": "rule",
                "strokeDash": [3, 3],
                "strokeWidth": 1.5,
                "color": "var(--muted)",
            },
            "encoding": {
                along: {"field": "value", "type": "quantitative"},
                "tooltip": {"field": "words"},
                "description": {"field": "words"},
            },
        }
    ]


def _labels(encoding: Spec) -> Spec:
    """Names beside the points; the page has Vega's own label transform place them."""
    return {
        "name": "labels",
        "mark": {"type": "text", "align": "left", "dx": 8, "aria": False},
        "encoding": encoding | {"text": {"field": "label"}},
    }


def _ring(chart: Chart, encoding: Spec) -> Spec:
    return {
        "transform": [{"filter": {"field": "label", "equal": chart.winner}}],
        "mark": {
            "type": "point",
            "filled": False,
            "size": 360,
            "strokeWidth": 2.5,
            "color": "var(--accent)",
            "aria": False,
        },
        "encoding": encoding,
    }


def _names(chart: Chart, axis: Spec | None = None) -> Spec:
    """The axis of named rows, in the order of the points."""
    order = list(dict.fromkeys(str(p.at) for p in chart.points))
    return {
        "field": "at",
        "type": "nominal",
        "sort": order,
        "axis": {
            "title": chart.place.title or None,
            "grid": False,
            "labelLimit": 190,
            "ticks": False,
        },
    } | (axis or {})


def _rows(chart: Chart) -> list[Spec]:
    """One value with its interval per named row."""
    ends = [v for p in chart.points for v in (p.low, p.value, p.high) if v is not None]
    scale, axis, moved = _scale(chart.values, [*ends, *(rule.value for rule in chart.rules)])
    value: Spec = {"field": "value", "type": "quantitative", "scale": scale, "axis": axis}
    data = {"data": {"values": _records(chart.points, moved)}}
    y = {"y": _names(chart)}
    layers = [
        _interval(chart, "x", y, value) | data,
        _marks(chart, {"x": value} | y, ("x",)) | data,
    ]
    return [*_rule_layers(chart, "x"), *layers]


def _stack(chart: Chart) -> list[Spec]:
    """Parts of a whole: a bar per named row, in the order of the series."""
    order = {s.name: number for number, s in enumerate(chart.series)}
    records = [r | {"order": order[r["series"]]} for r in _records(chart.points, {})]
    x: Spec = {
        "field": "value",
        "type": "quantitative",
        "stack": "normalize",
        "axis": {"title": chart.values.title or None, "labelExpr": _tick("share")},
    }
    encoding = {"x": x, "y": _names(chart), "order": {"field": "order"}} | _colour(chart)
    said = {"tooltip": {"field": "words"}, "description": {"field": "words"}}
    mark = {"type": "bar", "height": 14}
    return [
        {"name": "points", "data": {"values": records}, "mark": mark, "encoding": encoding | said}
    ]


def _cloud(chart: Chart) -> list[Spec]:
    """Positions in a plane on equal scales."""
    xs, ys = [float(p.at) for p in chart.points], [p.value for p in chart.points]
    middles = [(min(axis) + max(axis)) / 2 for axis in (xs, ys)]
    reach = (
        max(max(abs(v - m) for v in axis) for axis, m in zip((xs, ys), middles, strict=True)) or 1.0
    )
    encoding: Spec = {}
    for channel, name, middle, axis in zip(
        "xy", ("at", "value"), middles, (chart.place, chart.values), strict=True
    ):
        scale = {
            "domain": [middle - reach * 1.05, middle + reach * 1.05],
            "nice": False,
            "zero": False,
        }
        encoding[channel] = {
            "field": name,
            "type": "quantitative",
            "scale": scale,
            "axis": {"title": axis.title},
        }
    marks = _marks(chart, encoding, ("x", "y")) | {"data": {"values": _records(chart.points, {})}}
    marks["mark"] |= {"size": 24, "opacity": 0.45, "clip": True}
    return [marks]
