"""From answers to lines: figures of all rows, and the paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from modalign.evaluation.suites.parts import CHANCE, Answer, Measure, Part
from modalign.evaluation.suites.results import RANDOM, Line, Paired, Spread
from modalign.numbers.bootstrap import RESAMPLES
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.pairs import (
    NO_DIFFERENCE,
    Difference,
    difference_estimate,
    holm,
    mcnemar,
    p_value,
    verdict,
)
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import hierarchical_bootstrap

Answered: TypeAlias = dict[str, dict[str, list[list[Any]]]]  # part -> row -> draws -> answers
Fitting: TypeAlias = tuple[Part, Sequence[Any], Mapping[str, Sequence[Sequence[Answer]]]]

DIFFERENCES = {"share": "difference of shares", "bits per byte": "bits per byte"}


def lines_of(parts: Sequence[Fitting], models: Sequence[str], *, seed: int = 0) -> list[Line]:
    """Estimate every measure of every row, and test the first model against the others.

    Args:
        parts: each with the items and every row's answers to them.
        models: rows that are models; the first is the judged one.
        seed: of the intervals.
    """
    made = [
        (part, measure, rows)
        for part, items, rows in parts
        for measure in part.measures(list(items))
    ]
    tests = sum(measure.headline for _, measure, _ in made) * (len(models) - 1)
    enough = max(RESAMPLES, 200 * tests)
    lines, waiting = [], []
    for part, measure, rows in made:
        values = {
            name: np.stack([measure.of(draw) for draw in draws]) for name, draws in rows.items()
        }
        rules = {name: found[None] for name, found in measure.constants.items() if name != CHANCE}
        drawn = hierarchical_bootstrap(
            values | rules,
            groups=measure.groups,
            resamples=enough,
            seed=seed,
            fixed=[name for name in (*values, *rules) if name != RANDOM],
        )
        line = _line(part, measure, rows, drawn)
        lines.append(line)
        if measure.headline:
            for other in models[1:]:
                waiting.append((line, measure, other, drawn, rows))
    raw = [p_value(drawn, models[0], other) for _, _, other, drawn, _ in waiting]
    for (line, measure, other, drawn, rows), p, corrected in zip(
        waiting, raw, holm(raw), strict=True
    ):
        line.pairs[other] = _paired(measure, models[0], other, drawn, rows, p, corrected)
    return lines


def _line(
    part: Part,
    measure: Measure,
    rows: Mapping[str, Sequence[Sequence[Answer]]],
    drawn: Replicates,
) -> Line:
    figures = {name: _estimate(drawn, name, measure) for name in drawn.parts}
    if (chance := measure.constants.get(CHANCE)) is not None:
        figures[CHANCE] = exactly(float(chance.mean()), drawn.n, over=measure.over)
    spreads = {}
    if measure.by_order is not None:
        for name, draws in rows.items():
            found = np.mean([measure.by_order(draw) for draw in draws], axis=0)
            spreads[name] = Spread(low=float(found.min()), high=float(found.max()))
    return Line(
        part=part.name,
        measure=measure.name,
        headline=measure.headline,
        lower_is_better=measure.lower_is_better,
        n=drawn.n,
        over=measure.over,
        rows=figures,
        rules=[name for name in measure.constants if name != CHANCE],
        orders=spreads,
    )


def _estimate(drawn: Replicates, name: str, measure: Measure) -> Estimate:
    """Estimate a row's figure; perplexity is the exponential of nats per token, ends included."""
    if measure.unit != "perplexity":
        return drawn.estimate(name, over=measure.over, unit=measure.unit)
    found = drawn.estimate(name, over=measure.over, unit="nats per token")
    ends = {key: math.exp(getattr(found, key)) for key in ("value", "low", "high")}
    return found.model_copy(
        update={**ends, "unit": measure.unit, "by_questions": None, "by_trainings": None}
    )


def _paired(
    measure: Measure,
    model: str,
    other: str,
    drawn: Replicates,
    rows: Mapping[str, Sequence[Sequence[Answer]]],
    p: float,
    corrected: float,
) -> Paired:
    unit = DIFFERENCES[measure.unit]
    difference = difference_estimate(drawn, model, other, over=measure.over, unit=unit)
    larger = verdict(difference, corrected)
    better = {"first": "better", "second": "worse"}
    if measure.lower_is_better:
        better = {"first": "worse", "second": "better"}
    found = Paired(
        difference=Difference(
            first=model,
            second=other,
            difference=difference,
            p_value=p,
            p_holm=corrected,
            verdict=larger,
        ),
        verdict=better.get(larger, NO_DIFFERENCE),
    )
    if measure.right is None:
        return found
    mine, theirs = (measure.right(rows[name][0]) for name in (model, other))
    only = (int(((mine == 1) & (theirs == 0)).sum()), int(((mine == 0) & (theirs == 1)).sum()))
    return found.model_copy(
        update={"only_model": only[0], "only_other": only[1], "mcnemar": mcnemar(*only)}
    )
