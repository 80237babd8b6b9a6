"""The recommendation at other budgets and prices of compute, as dials."""

from __future__ import annotations

from modalign.comparison.results import Comparison, Priced, WhatIf
from modalign.numbers import words as fmt
from modalign.pages import parts
from modalign.pages.parts import Dial, Outcome, Section
from modalign.training.budget import Budget

LEAD = (
    "Move the dials: the choice follows. A method's worth is its validation accuracy less the price of its "
    "compute. At part of the budget accuracies are those of the learning curves, of trainings that were not "
    "finished."
)


def dials(comparison: Comparison) -> Section:
    """Return the section; empty where nothing is known of other budgets."""
    found = comparison.what_if
    if found is None:
        return Section("what-if", "At another budget or price", "", [])
    budgets = [fmt.percent(share) for share in found.shares]
    if found.larger is not None:
        budgets.append(f"{Budget.parse(found.larger).words()}, foretold")
    prices = [
        "nothing" if price == 0 else f"{price:g} point{'' if price == 1 else 's'}"
        for price in found.prices
    ]
    columns = len(prices)
    outcomes = [
        [_outcome(found, pick) for pick in found.picks[place : place + columns]]
        for place in range(0, len(found.picks), columns)
    ]
    part = parts.WhatIf(
        "what-if-dials",
        f"What would be chosen ({found.cost} priced)",
        "/what_if",
        (
            Dial("Share of the budget", budgets, found.shares.index(max(found.shares))),
            Dial("A tenfold cost must bring", prices),
        ),
        outcomes,
    )
    return Section("what-if", "At another budget or price", LEAD, [part])


def _outcome(found: WhatIf, pick: Priced) -> Outcome:
    of_what = "an answer" if found.cost == "FLOPs per answer" else "of training"

    def words(accuracy: float, cost: float) -> str:
        return f"{fmt.percent(accuracy)} right on validation, {fmt.flops(cost)} {of_what}."

    second = f"Next: {pick.next}, {words(pick.next_accuracy, pick.next_cost)}"
    return Outcome(pick.method, [words(pick.accuracy, pick.cost), second])
