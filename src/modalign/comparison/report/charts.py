"""The figures of the report: quality against cost, skills, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modalign.comparison.report.quantities import (
    ACCURACY,
    FAMILIES,
    FLOPS,
    INFERENCE,
    NAME,
    TOKENS,
    TRAINABLE,
    TRAININGS,
    ranked,
)
from modalign.comparison.results import Comparison, MethodResult, SeedRun
from modalign.numbers import words as fmt
from modalign.pages.drawing import row_chart
from modalign.pages.figures import Axis, Chart, Point, Rule, Series
from modalign.pages.parts import Figure, Quantity, tabulate

CURVE_POINTS = 120  # a longer curve is thinned to this
SHOWN_CURVES = 8  # initially; the others can be switched on
DRAWN_COSTS = (  # name in titles, and whether the axis is logarithmic
    (TRAINABLE, "trainable parameters", True),
    (TOKENS, "tokens per item", False),
    (FLOPS, "training compute", True),
    (INFERENCE, "compute per answer", True),
)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, quality) that no cheaper point matches."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def cost_figures(comparison: Comparison) -> list[Figure]:
    """Plot accuracy against each known cost, with the Pareto front as a table."""
    return [
        figure
        for cost, name, log in DRAWN_COSTS
        if (figure := _cost_figure(comparison, cost, name, log)) is not None
    ]


def _cost_figure(comparison: Comparison, cost: Quantity, name: str, log: bool) -> Figure | None:
    """Plot accuracy with intervals against one cost, with the Pareto front."""
    shown = [
        (m, value, m.accuracy_interval)
        for m in ranked(comparison.methods)
        if m.accuracy_interval is not None and (value := cost.number(m)) is not None
    ]
    if not shown:
        return None
    points = [
        Point(
            value,
            accuracy.value,
            accuracy.low,
            accuracy.high,
            method.family,
            f"{method.name}: {fmt.interval(accuracy)} at {cost.text(method)}",
            method.name,
            hollow=len(method.seeds) < 2,
        )
        for method, value, accuracy in shown
    ]
    front = pareto_front([(value, accuracy.value) for _, value, accuracy in shown])
    title = f"Quality against {name}"
    best = max(points, key=lambda point: point.value)
    bounds = (None, None) if log else (0.0, None)
    chart = Chart(
        "scatter",
        title,
        f"{title}: {len(points)} methods; highest {best.words}.",
        points,
        [FAMILIES[name] for name in FAMILIES if any(p.series == name for p in points)],
        Axis(name + (" (logarithmic)" if log else ""), cost.unit, log, bounds),
        Axis("accuracy", "share"),
        front=front,
        winner=(comparison.recommendation.method or "") if comparison.recommendation else "",
        height=400,
    )
    on_front = [m for m, value, accuracy in shown if (value, accuracy.value) in front]
    key = name.replace(" ", "-")
    order = sorted(on_front, key=lambda m: cost.number(m) or 0.0)
    table = tabulate((f"front-{key}", f"Front: {title}", "/methods"), [NAME, cost, ACCURACY], order)
    return Figure(f"cost-{key}", title, "/methods", [chart], table)


def skill_figure(comparison: Comparison) -> Figure | None:
    """Plot one chart per skill with a row per method and chance, and a table."""
    shown = [m for m in ranked(comparison.methods) if m.skills]
    names = sorted({skill for m in shown for skill in m.skills})
    if not names:
        return None
    chance = next((r.skills for r in comparison.references if r.name == "chance"), {})
    families = [series for name, series in FAMILIES.items() if any(m.family == name for m in shown)]
    charts, columns = [], []
    for skill in names:
        column = _of_skill(skill)
        own = [m for m in shown if skill in m.skills]
        title = f"{skill} (n = {own[0].skills[skill].n})"
        rules = [Rule(chance[skill].value, "chance")] if skill in chance else []
        axis = Axis("", "share", bounds=(0.0, 1.0))
        groups = [m.family for m in own]
        charts.append(row_chart(title, column, own, NAME, axis, rules, families, groups))
        columns.append(column)
    rows = [*shown, *(r for r in comparison.references if r.skills)]
    table = tabulate(
        ("skills-table", "Accuracy per skill, as numbers", "/methods"),
        [NAME, *columns],
        rows,
        tone=lambda row: "" if isinstance(row, MethodResult) else "reference",
        sortable=True,
    )
    return Figure("skills-figure", "Accuracy per skill", "/methods", charts, table, least=340)


def _of_skill(skill: str) -> Quantity:
    return Quantity(skill, lambda row: row.skills.get(skill))


def curve_figure(comparison: Comparison) -> Figure | None:
    """Plot validation loss against samples, one line per method (mean over seeds)."""
    shown = [m for m in ranked(comparison.methods) if _mean_curve(m.seeds)]
    if not shown:
        return None
    means = {m.name: _mean_curve(m.seeds) for m in shown}
    later = [loss for curve in means.values() for _, loss, _ in curve[1:]]
    points = [
        Point(
            samples,
            loss,
            series=name,
            words=f"{name}, {fmt.count(samples)} samples: {loss:.3f}{seeds}",
        )
        for name, curve in means.items()
        for samples, loss, seeds in curve
    ]
    title = "Validation loss against training samples"
    words = f"{title}: {len(shown)} methods, a line each."
    series = [Series(m.name, number) for number, m in enumerate(shown)]
    samples = Axis("training samples", "count", bounds=(0.0, None))
    loss = Axis("validation loss", cut=max(later) if later else None)
    chart = Chart("lines", title, words, points, series, samples, loss, height=360)
    trainings = [{"method": m, "run": run} for m in ranked(comparison.methods) for run in m.seeds]
    table = tabulate(("trainings", "Trainings", "/methods"), TRAININGS, trainings, sortable=True)
    first = shown[:SHOWN_CURVES]
    hidden = [m.name for m in shown if m not in first]
    return Figure("curves-figure", title, "/methods", [chart], table, hidden=hidden)


def _curve(run: SeedRun) -> list[tuple[float, float]]:
    known = [
        (float(p.samples), p.val_loss)
        for p in run.curve
        if p.val_loss is not None and math.isfinite(p.val_loss)
    ]
    step = max(1, -(-len(known) // CURVE_POINTS))
    return [*known[:-1:step], known[-1]] if known else []


def _mean_curve(runs: Sequence[SeedRun]) -> list[tuple[float, float, str]]:
    """Return samples, mean validation loss over seeds, and the seeds' range in words.

    Seeds are measured at slightly different sample counts (batches differ in length), so each curve is
    interpolated at every count that all seeds have passed.
    """
    curves = [curve for run in runs if (curve := _curve(run))]
    if not curves:
        return []
    last = min(curve[-1][0] for curve in curves)
    places = sorted({x for curve in curves for x, _ in curve if x <= last})
    lines = np.array([np.interp(places, *np.array(curve).T) for curve in curves])
    found = []
    for x, own in zip(places, lines.T, strict=True):
        seeds = f" ({len(own)} seeds: {own.min():.3f} to {own.max():.3f})" if len(own) > 1 else ""
        found.append((x, float(own.mean()), seeds))
    return found
