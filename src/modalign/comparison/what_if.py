"""What would be recommended at less of the budget, and where compute is dearer or cheaper.

Every candidate is judged by one number: its validation accuracy, less the price of its compute. The price is
stated in points of accuracy that a tenfold cost must bring: at 0 only accuracy counts; at 5 a method that takes
ten times the FLOPs of another must be five points better. Accuracies at part of the budget come from the learning
curves, so they are of trainings whose learning rate had not fallen yet; those at the whole budget are the
comparison's own; those at a larger budget are foretold (:mod:`~modalign.comparison.planning`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modalign.comparison.results import MethodResult, Plan, Priced, SeedRun, WhatIf

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the budget
PRICES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # points of accuracy for a tenfold cost


def what_if(methods: Sequence[MethodResult], plan: Plan | None = None) -> WhatIf | None:
    """Choose among the candidates at each share of the budget and each price.

    Args:
        methods: of the comparison.
        plan: what is foretold for a larger budget.

    Returns:
        The choices; None where fewer than two candidates have learning curves and known costs.
    """
    candidates = [m for m in methods if m.candidate and m.val_accuracy is not None]
    per_answer = all(m.inference_flops for m in candidates)
    costs = {m.name: (m.inference_flops if per_answer else m.flops) or 0.0 for m in candidates}
    columns = {share: _at(candidates, share) for share in SHARES}
    shares = [share for share, found in columns.items() if len(found) == len(candidates)]
    if len(candidates) < 2 or not all(costs.values()) or not shares:
        return None
    picks = [
        _pick(columns[share], costs, share, price, None) for share in shares for price in PRICES
    ]
    foretold = {each.method: each.accuracy.value for each in plan.methods} if plan else {}
    larger = plan.budget if plan and set(foretold) >= set(costs) else None
    if larger is not None:
        known = {name: foretold[name] for name in costs}
        picks += [_pick(known, costs, None, price, larger) for price in PRICES]
    return WhatIf(
        cost="FLOPs per answer" if per_answer else "training FLOPs",
        shares=shares,
        larger=larger,
        prices=list(PRICES),
        picks=picks,
    )


def _at(methods: Sequence[MethodResult], share: float) -> dict[str, float]:
    """Return validation accuracies at a share of the training; methods without a curve so far are left out."""
    if share == 1.0:
        return {m.name: m.val_accuracy for m in methods if m.val_accuracy is not None}
    found = {m.name: [_reached(run, share) for run in m.seeds] for m in methods}
    return {
        name: float(np.mean([value for value in values if value is not None]))
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def _reached(run: SeedRun, share: float) -> float | None:
    """Return the accuracy at the last point of the curve that the share pays for."""
    points = [point for point in run.curve if point.val_accuracy is not None]
    paid = [p for p in points if p.samples <= share * points[-1].samples]
    return paid[-1].val_accuracy if paid else None


def _pick(
    accuracies: Mapping[str, float],
    costs: Mapping[str, float],
    share: float | None,
    price: float,
    larger: str | None,
) -> Priced:
    """Return the two methods with the highest accuracy less price."""
    cheapest = min(costs.values())

    def worth(name: str) -> tuple[float, float, str]:
        paid = price / 100 * math.log10(costs[name] / cheapest)
        return (-(accuracies[name] - paid), costs[name], name)

    first, second = sorted(accuracies, key=worth)[:2]
    return Priced(
        share=share,
        larger=larger,
        price=price,
        method=first,
        accuracy=accuracies[first],
        cost=costs[first],
        next=second,
        next_accuracy=accuracies[second],
        next_cost=costs[second],
    )
