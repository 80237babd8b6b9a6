"""The choice at part of the budget and at a price of compute."""

from __future__ import annotations

import pytest

from modalign.comparison.results import (
    CurvePoint,
    Foretold,
    MethodResult,
    Plan,
    SeedRun,
)
from modalign.comparison.what_if import PRICES, SHARES, what_if
from modalign.numbers.estimate import Estimate


def method(name: str, curves: list[list[float]], cost: float | None, **more) -> MethodResult:
    """A candidate with a curve of 8 points for each training."""
    runs = [
        SeedRun(
            seed=seed,
            accuracy=0.0,
            val_loss=None,
            val_accuracy=curve[-1],
            samples=800,
            seconds=1.0,
            flops=1.0,
            curve=[
                CurvePoint(samples=100 * (place + 1), seconds=1, flops=1, val_accuracy=value)
                for place, value in enumerate(curve)
            ],
        )
        for seed, curve in enumerate(curves)
    ]
    return MethodResult(
        name=name, family="converter", group="", variant="", enters="prefix", papers=[], seeds=runs,
        candidate=True, inference_flops=cost, **more,
    )  # fmt: skip


FAST = [[0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]
SLOW = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.62]] * 2


@pytest.fixture
def methods() -> list[MethodResult]:
    """One that learns fast and costs a hundredth of one that ends higher."""
    return [
        method("fast", FAST, 1e6, val_accuracy=0.5),
        method("slow", SLOW, 1e8, val_accuracy=0.62),
    ]


def test_the_curves_decide_at_part_of_the_budget(methods):
    found = what_if(methods)
    free = {pick.share: pick for pick in found.picks if pick.price == 0}
    assert list(free) == list(SHARES)
    assert free[0.125].method == "fast"
    assert free[0.125].accuracy == pytest.approx(0.2)  # mean of both trainings' first points
    assert free[0.75].method == "fast"  # 0.5 each: the cheaper one
    assert free[1.0].method == "slow"
    assert (free[1.0].next, free[1.0].next_accuracy) == ("fast", 0.5)


def test_a_price_of_six_points_is_where_a_hundredfold_cost_is_no_longer_worth_twelve(methods):
    found = what_if(methods)
    whole = {pick.price: pick.method for pick in found.picks if pick.share == 1.0}
    assert {price: whole[price] for price in (0.0, 5.0, 10.0)} == {
        0.0: "slow",  # 62 against 50
        5.0: "slow",  # 62 - 2 x 5 = 52
        10.0: "fast",  # 62 - 2 x 10 = 42
    }
    assert list(whole) == list(PRICES)


def test_a_foretold_budget_is_a_row_of_its_own(methods):
    told = [
        Foretold(
            method=name,
            accuracy=Estimate(value=value, low=0, high=1, n=9),
            best=0.5,
            rate=0.1,
            past=Estimate(value=1, low=0, high=2, n=9),
            happened=1.0,
        )
        for name, value in (("fast", 0.9), ("slow", 0.8))
    ]
    found = what_if(methods, Plan(budget="9000samples", method=None, words="", methods=told))
    last = found.picks[-len(PRICES)]
    assert (last.share, last.larger, last.method, last.accuracy) == (
        None,
        "9000samples",
        "fast",
        0.9,
    )


def test_nothing_is_said_of_one_candidate_or_unknown_costs(methods):
    assert what_if(methods[:1]) is None
    assert what_if([methods[0], method("free", SLOW, None, val_accuracy=0.6)]) is None
    assert what_if([methods[0], method("none", [], 1e6)]) is None
