"""The drawings of the report: quality against cost, skills, learning curves, small intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from modalign.comparison.results import Comparison, MethodResult, SeedRun
from modalign.numbers import words as fmt
from modalign.numbers.estimate import Estimate
from modalign.pages import svg

WIDTH = 1080.0
CURVE_POINTS = 120  # a longer curve is thinned to this


@dataclass(frozen=True)
class Cost:
    """One horizontal axis of quality against cost."""

    title: str
    axis: str
    value: Callable[[MethodResult], float | None]
    show: Callable[[float | None], str]
    log: bool


COSTS = (
    Cost(
        "Quality against trainable parameters",
        "trainable parameters (logarithmic)",
        lambda m: m.trainable_parameters,
        fmt.count,
        True,
    ),
    Cost(
        "Quality against tokens",
        "positions one item takes in the language model's input",
        lambda m: m.tokens,
        fmt.count,
        False,
    ),
    Cost(
        "Quality against training compute",
        "training FLOPs, all stages, one seed (logarithmic)",
        lambda m: m.flops,
        fmt.flops,
        True,
    ),
    Cost(
        "Quality against compute per answer",
        "FLOPs of one item, forward (logarithmic)",
        lambda m: m.inference_flops,
        fmt.flops,
        True,
    ),
)


def ranked(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """Best validation rank first, failures last."""
    return sorted(methods, key=lambda m: (m.rank is None, m.rank or 0, m.name))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points no other point beats: (cost, quality) with every cheaper one being worse."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def quality_against_cost(comparison: Comparison, cost: Cost) -> str | None:
    """Accuracy with intervals against one cost, the Pareto front, every point named."""
    shown = [
        (m, float(value), m.accuracy_interval)
        for m in ranked(comparison.methods)
        if m.accuracy_interval is not None and (value := cost.value(m)) is not None
    ]
    if not shown:
        return None
    height, left, right, top, bottom = 466.0, 62.0, WIDTH - 24, 8.0, 408.0
    values = [value for _, value, _ in shown]
    x = (svg.log_scale if cost.log else svg.linear_scale)(values, left + 16, right - 150)
    bounds = [b for _, _, i in shown for b in (i.low, i.high)]
    y = svg.linear_scale(bounds, bottom, top, pad=0.05)
    points = [(x(value), y(i.value)) for _, value, i in shown]
    front = pareto_front([(value, i.value) for _, value, i in shown])
    stairs = _stairs([(x(a), y(b)) for a, b in front], right, bottom)
    winner = comparison.recommendation.method if comparison.recommendation else None
    parts = [
        _frame(x, y, cost, (left, top, right, bottom)),
        svg.polyline(stairs, class_="front"),
    ]
    bars = [_box(a, b) for a, b in pairwise(stairs)]
    for (method, _, i), (px, _) in zip(shown, points, strict=True):
        bars.append((px - 1, y(i.high), px + 1, y(i.low)))
        parts.append(svg.line(px, y(i.low), px, y(i.high), class_=f"bar {method.family}"))
    labels = svg.place_labels(
        points, [m.name for m, _, _ in shown], (left + 2, top, right + 20, bottom - 2), bars
    )
    for (method, _, _), (px, py), label in zip(shown, points, labels, strict=True):
        parts.append(_point(method, px, py, label, method.name == winner))
    best = max(shown, key=lambda row: row[2].value)
    alt = (
        f"{cost.title}: {len(shown)} methods, accuracy from {fmt.percent(min(bounds))} to "
        f"{fmt.percent(max(bounds))}; highest {best[0].name} at {cost.show(best[1])}. "
        "The ranking table holds every value."
    )
    return svg.document(WIDTH, height, alt, *parts)


def _frame(x: svg.Scale, y: svg.Scale, cost: Cost, area: svg.Box) -> str:
    left, _, right, bottom = area
    parts = []
    for tick in y.ticks():
        parts.append(svg.line(left, y(tick), right, y(tick), class_="grid"))
        label = fmt.percent(tick).replace(".0 %", " %")
        parts.append(svg.text(label, left - 8, y(tick) + 4, class_="tick", text_anchor="end"))
    ticks = [*([0.0] if x.zero is not None else []), *x.ticks(8)]
    for tick in ticks:
        parts.append(svg.line(x(tick), bottom, x(tick), bottom + 5, class_="axis"))
        label = cost.show(tick) if tick else "0"
        parts.append(svg.text(label, x(tick), bottom + 20, class_="tick", text_anchor="middle"))
    parts.append(svg.line(left, bottom, right, bottom, class_="axis"))
    if x.zero is not None:
        gap = (x.zero + x.start) / 2
        parts.append(svg.line(gap - 5, bottom + 5, gap + 1, bottom - 5, class_="axis"))
        parts.append(svg.line(gap + 1, bottom + 5, gap + 7, bottom - 5, class_="axis"))
    middle = (left + right) / 2
    parts.append(svg.text(cost.axis, middle, bottom + 46, class_="title", text_anchor="middle"))
    return "".join(parts)


def _stairs(
    points: Sequence[tuple[float, float]], right: float, bottom: float
) -> list[tuple[float, float]]:
    """The front as stairs: what each further unit of cost buys."""
    stairs: list[tuple[float, float]] = []
    for index, (px, py) in enumerate(points):
        stairs.append((px, bottom if index == 0 else points[index - 1][1]))
        stairs.append((px, py))
    return [*stairs, (right, points[-1][1])]


def _box(a: tuple[float, float], b: tuple[float, float]) -> svg.Box:
    """The place a line takes."""
    xs, ys = sorted((a[0], b[0])), sorted((a[1], b[1]))
    return (xs[0] - 1, ys[0] - 1, xs[1] + 1, ys[1] + 1)


def _point(method: MethodResult, x: float, y: float, label: svg.Label, winner: bool) -> str:
    parts = []
    if winner:
        parts.append(svg.tag("circle", cx=x, cy=y, r=11, class_="halo"))
    if label.far:
        parts.append(svg.line(x, y, label.x, label.y, class_="leader"))
    hollow = "" if len(method.seeds) > 1 else " hollow"
    parts.append(svg.mark(method.family, x, y, class_=f"mark {method.family}{hollow}"))
    shift = (2 if label.far else 4 if winner else 0) * (1 if label.anchor == "start" else -1)
    parts.append(
        svg.text(
            method.name,
            label.x + shift,
            label.y + 4,
            class_="label winner" if winner else "label",
            text_anchor=label.anchor,
        )
    )
    title = f"{method.name}: {fmt.interval(method.accuracy_interval)}"
    return svg.tag("g", svg.tag("title", svg.escape(title)), *parts)


def skills(comparison: Comparison) -> str | None:
    """One panel per skill, one row per method, the chance line in every panel."""
    shown = [m for m in ranked(comparison.methods) if m.skills]
    names = sorted({skill for m in shown for skill in m.skills})
    if not names:
        return None
    per_row = min(4, len(names))
    names_width = min(200.0, max(len(m.name) for m in shown) * svg.CHARACTER + 30)
    gap, row, head = 34.0, 20.0, 40.0
    panel = (WIDTH - 14 - names_width - gap * (per_row - 0.5)) / per_row
    block = head + row * len(shown) + 40
    chance = _reference(comparison, "chance")
    parts = []
    for index, skill in enumerate(names):
        column, line = index % per_row, index // per_row
        top = line * block
        if column == 0:
            parts.append(_row_names(shown, top + head, row, names_width))
        left = names_width + gap / 2 + column * (panel + gap)
        parts.append(_skill_panel(skill, shown, chance.get(skill), (left, top + head, panel, row)))
    alt = (
        f"Accuracy per skill with 95 % intervals for {len(shown)} methods and {len(names)} skills: "
        f"{fmt.names(names)}. The table below holds the numbers."
    )
    height = block * ((len(names) - 1) // per_row + 1)
    return svg.document(WIDTH, height, alt, *parts)


def _reference(comparison: Comparison, name: str) -> dict[str, Estimate]:
    return next((r.skills for r in comparison.references if r.name == name), {})


def _row_names(shown: Sequence[MethodResult], top: float, row: float, width: float) -> str:
    parts = []
    for index, method in enumerate(shown):
        y = top + row * (index + 0.5)
        if index % 2 == 0:
            parts.append(
                svg.tag("rect", x=0, y=y - row / 2, width=WIDTH, height=row, class_="zebra")
            )
        parts.append(svg.mark(method.family, 9, y, 4.2, class_=f"mark {method.family}"))
        parts.append(svg.text(method.name, 22, y + 4, class_="label"))
    return "".join(parts)


def _skill_panel(
    skill: str,
    shown: Sequence[MethodResult],
    chance: Estimate | None,
    place: tuple[float, float, float, float],
) -> str:
    left, top, width, row = place
    x = svg.Scale(0.0, 1.0, left, left + width)
    bottom = top + row * len(shown)
    n = next((m.skills[skill].n for m in shown if skill in m.skills), 0)
    parts = [
        svg.text(skill, left, top - 12, class_="title"),
        svg.text(f"n = {n}", left + width, top - 12, class_="tick", text_anchor="end"),
    ]
    for tick in (0.0, 0.5, 1.0):
        parts.append(svg.line(x(tick), top, x(tick), bottom, class_="grid"))
        label = f"{tick * 100:.0f}"
        parts.append(svg.text(label, x(tick), bottom + 15, class_="tick", text_anchor="middle"))
    if chance is not None:
        parts.append(svg.line(x(chance.value), top - 4, x(chance.value), bottom, class_="chance"))
    for index, method in enumerate(shown):
        value = method.skills.get(skill)
        if value is None:
            continue
        y = top + row * (index + 0.5)
        title = svg.tag("title", svg.escape(f"{method.name}, {skill}: {fmt.interval(value)}"))
        bar = svg.line(x(value.low), y, x(value.high), y, class_=f"bar strong {method.family}")
        dot = svg.mark(method.family, x(value.value), y, 4.2, class_=f"mark {method.family}")
        parts.append(svg.tag("g", title, bar, dot))
    return "".join(parts)


def learning_curves(comparison: Comparison) -> str | None:
    """Validation loss against samples, one panel per method on shared axes, the rest in grey."""
    shown = [m for m in ranked(comparison.methods) if _mean_curve(m.seeds)]
    if not shown:
        return None
    means = {m.name: _mean_curve(m.seeds) for m in shown}
    every = [p for m in shown for run in m.seeds for p in _curve(run)]
    columns = min(5, len(shown))
    gap_x, head, tall, foot = 16.0, 30.0, 120.0, 30.0
    margin = 40.0
    wide = (WIDTH - margin - gap_x * (columns - 1)) / columns
    xs = svg.Scale(0.0, max(x for x, _ in every) or 1.0, 0.0, wide)
    losses = sorted(y for _, y in every)
    top_loss = (
        max(max(y for _, y in c[1:]) for c in means.values() if len(c) > 1)
        if any(len(c) > 1 for c in means.values())
        else losses[-1]
    )
    ys = svg.linear_scale([losses[0], top_loss], tall, 0.0)
    grey = [svg.polyline(_fit(c, xs, ys), class_="others") for c in means.values()]
    parts = []
    for index, method in enumerate(shown):
        left = margin + (index % columns) * (wide + gap_x)
        top = head + (index // columns) * (head + tall + foot)
        inner = [*grey, _own_curves(method, means[method.name], xs, ys)]
        axes = _curve_axes(xs, ys, wide, tall, index % columns == 0)
        name = svg.text(method.name, 0, -9, class_="title")
        parts.append(svg.tag("g", axes, *inner, name, transform=f"translate({left:.1f} {top:.1f})"))
    rows = (len(shown) - 1) // columns + 1
    alt = (
        f"Validation loss against training samples for {len(shown)} methods, one panel each: "
        "thin lines are seeds, the bold line their mean, grey lines the other methods."
    )
    return svg.document(WIDTH, rows * (head + tall + foot) + 6, alt, *parts)


def _curve(run: SeedRun) -> list[tuple[float, float]]:
    known = [
        (float(p.samples), p.val_loss)
        for p in run.curve
        if p.val_loss is not None and math.isfinite(p.val_loss)
    ]
    step = max(1, -(-len(known) // CURVE_POINTS))
    return [*known[:-1:step], known[-1]] if known else []


def _mean_curve(runs: Sequence[SeedRun]) -> list[tuple[float, float]]:
    """Mean validation loss of the seeds, at every sample count that all of them have passed.

    Seeds are measured at slightly different counts (batches have different lengths), so each curve
    is read off between its own points.
    """
    curves = [curve for run in runs if (curve := _curve(run))]
    if not curves:
        return []
    last = min(curve[-1][0] for curve in curves)
    places = sorted({x for curve in curves for x, _ in curve if x <= last})
    lines = [np.interp(places, *np.array(curve).T) for curve in curves]
    return [(x, float(y)) for x, y in zip(places, np.mean(lines, axis=0), strict=True)]


def _fit(
    curve: Sequence[tuple[float, float]], x: svg.Scale, y: svg.Scale
) -> list[tuple[float, float]]:
    """Positions, cut at the panel's upper edge (a loss before the first step may be huge)."""
    return [(x(s), max(y(loss), -2.0)) for s, loss in curve]


def _own_curves(
    method: MethodResult, mean: Sequence[tuple[float, float]], x: svg.Scale, y: svg.Scale
) -> str:
    thin = [
        svg.polyline(_fit(_curve(run), x, y), class_=f"seed {method.family}")
        for run in method.seeds
        if len(method.seeds) > 1
    ]
    return "".join([*thin, svg.polyline(_fit(mean, x, y), class_=f"mean {method.family}")])


def _curve_axes(x: svg.Scale, y: svg.Scale, wide: float, tall: float, first: bool) -> str:
    parts = []
    for tick in y.ticks(4):
        parts.append(svg.line(0, y(tick), wide, y(tick), class_="grid"))
        if first:
            label = f"{tick:g}"
            parts.append(svg.text(label, -7, y(tick) + 4, class_="tick", text_anchor="end"))
    ticks = x.ticks(2)
    for tick in ticks:
        anchor = "start" if tick == 0 else "middle" if tick < x.high * 0.93 else "end"
        parts.append(
            svg.text(fmt.count(tick), x(tick), tall + 15, class_="tick", text_anchor=anchor)
        )
    parts.append(svg.line(0, tall, wide, tall, class_="axis"))
    return "".join(parts)


def small_interval(value: Estimate, family: str | None, scale: tuple[float, float]) -> str:
    """An interval as a table cell shows it; the cell's text holds the numbers."""
    x = svg.Scale(*scale, 3.0, 117.0)
    kind = family or "reference"
    return svg.tag(
        "svg",
        svg.line(3, 9, 117, 9, class_="grid"),
        svg.line(x(value.low), 9, x(value.high), 9, class_=f"bar strong {kind}"),
        svg.mark(kind, x(value.value), 9, 4, class_=f"mark {kind}"),
        viewBox="0 0 120 18",
        width=120,
        height=18,
        class_="spark",
        aria_hidden="true",
    )


def family_mark(family: str) -> str:
    """The family's shape beside its name."""
    return svg.tag(
        "svg",
        svg.mark(family, 8, 8, 5, class_=f"mark {family}"),
        viewBox="0 0 16 16",
        width=14,
        height=14,
        class_="glyph",
        aria_hidden="true",
    )
