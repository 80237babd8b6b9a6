"""Lines over layers with their intervals: the drawing of everything measured layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modalign.pages import svg

SHAPES = ("converter", "perceiver", "tool", "data")  # circle, square, triangle, diamond
WIDTH, HEIGHT = 720.0, 300.0
LEGEND = 26.0


@dataclass(frozen=True)
class Point:
    """A measured number and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One line: its name and a point per layer (None where nothing was measured)."""

    name: str
    points: Sequence[Point | None]


def layer_lines(
    series: Sequence[Series],
    *,
    title: str,
    axis: str,
    show: Callable[[float], str],
    chosen: Sequence[int] = (),
    bounds: tuple[float, float] | None = None,
) -> str:
    """Draw up to four series against the layer's number.

    Args:
        series: each with as many points as there are layers.
        title: what the drawing shows, for readers who do not see it.
        axis: what the vertical axis measures.
        show: a value in words.
        chosen: layers to be marked by a band.
        bounds: least extent of the vertical axis.
    """
    layers = max(len(each.points) for each in series)
    left, top, right, bottom = 58.0, LEGEND + 14, WIDTH - 14, HEIGHT - 44
    values = [v for s in series for p in s.points if p for v in (p.low, p.high)]
    low, high = min([*values, *(bounds or ())]), max([*values, *(bounds or ())])
    y = svg.linear_scale([low, high], bottom, top, pad=0.03)
    x = svg.Scale(-0.5, layers - 0.5, left, right)
    parts = [_band(x, chosen, top, bottom), _frame(x, y, layers, show, (left, top, right, bottom))]
    for index, each in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * min(7.0, (right - left) / layers / 6)
        parts.append(_line(each, index, shift, x, y, show))
    parts += [_legend(series, left), svg.text(axis, left - 46, 12, class_="tick")]
    middle = (left + right) / 2
    parts.append(svg.text("layer", middle, HEIGHT - 6, class_="tick", text_anchor="middle"))
    return svg.document(WIDTH, HEIGHT, _description(title, series, show), *parts)


def _band(x: svg.Scale, chosen: Sequence[int], top: float, bottom: float) -> str:
    if not chosen:
        return ""
    start, end = x(min(chosen) - 0.5), x(max(chosen) + 0.5)
    return svg.tag("rect", x=start, y=top, width=end - start, height=bottom - top, class_="chosen")


def _frame(
    x: svg.Scale, y: svg.Scale, layers: int, show: Callable[[float], str], area: svg.Box
) -> str:
    left, _, right, bottom = area
    parts = []
    for tick in y.ticks(5):
        parts.append(svg.line(left, y(tick), right, y(tick), class_="grid"))
        parts.append(svg.text(show(tick), left - 8, y(tick) + 4, class_="tick", text_anchor="end"))
    step = max(1, -(-layers // 16))
    for layer in range(0, layers, step):
        label = str(layer)
        parts.append(svg.text(label, x(layer), bottom + 17, class_="tick", text_anchor="middle"))
    parts.append(svg.line(left, bottom, right, bottom, class_="axis"))
    return "".join(parts)


def _line(
    series: Series,
    index: int,
    shift: float,
    x: svg.Scale,
    y: svg.Scale,
    show: Callable[[float], str],
) -> str:
    known = [(x(layer) + shift, layer, p) for layer, p in enumerate(series.points) if p is not None]
    parts = [svg.polyline([(at, y(p.value)) for at, _, p in known], class_=f"line s{index}")]
    for at, layer, point in known:
        words = (
            f"{series.name}, layer {layer}: {show(point.value)} "
            f"({show(point.low)} to {show(point.high)})"
        )
        parts.append(
            svg.tag(
                "g",
                svg.tag("title", svg.escape(words)),
                svg.line(at, y(point.low), at, y(point.high), class_=f"bar s{index}"),
                svg.mark(SHAPES[index], at, y(point.value), 4.2, class_=f"mark s{index}"),
            )
        )
    return "".join(parts)


def _legend(series: Sequence[Series], left: float) -> str:
    parts, at = [], left
    for index, each in enumerate(series):
        parts.append(svg.mark(SHAPES[index], at + 6, LEGEND, 4.2, class_=f"mark s{index}"))
        parts.append(svg.text(each.name, at + 16, LEGEND + 4, class_="label"))
        at += 34 + len(each.name) * svg.CHARACTER
    return "".join(parts)


def _description(title: str, series: Sequence[Series], show: Callable[[float], str]) -> str:
    words = []
    for each in series:
        known = [(p.value, layer) for layer, p in enumerate(each.points) if p is not None]
        if known:
            value, layer = max(known)
            words.append(f"{each.name} is highest at layer {layer} with {show(value)}")
    return f"{title}. {'; '.join(words)}. The table holds every value."
