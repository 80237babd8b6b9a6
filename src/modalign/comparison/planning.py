"""Which method at a larger budget: what the learning curves of a comparison foretell, and how surely.

Two points of a method's learning curve are comparable, since the learning rate had fallen to zero at both: the end
of the learning-rate trial that was kept (n_0 samples, loss L_0) and the end of training (n_1, L_1). Between them
the loss fell at the rate, or exponent of a power law without floor::

    b = log(L_0 / L_1) / log(n_1 / n_0)

A curve need not go on so: some methods are near their floor and slow down, others have hardly begun and will be
faster, and nothing in their curves says when. On the starter, seven methods whose rates had been 0.01 to 0.13 up
to 5,000 samples went on to 20,000 at rates of 0.14 to 0.94. So the rate of what comes next is drawn about half-way
between the method's own and the mean of all, with Student's tails (M - 1 degrees of freedom for M methods) and the
standard deviation of all, but no less than ``RESTLESS``; and never below zero. The loss foretold is L_1 x^(-b) at
x times the budget; accuracy follows on the logit scale, by the slope that accuracies have against log losses along
all curves, from the accuracy reached.

The same is asked of the past, leaving each method out: from its trial, at the rates of the other methods, what
would have been foretold for the end of its training? The report shows that beside what happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from modalign.comparison.results import Crossing, Foretold, MethodResult, Plan
from modalign.errors import UsageError
from modalign.numbers import words as fmt
from modalign.numbers.bootstrap import TAIL, Floats
from modalign.numbers.estimate import Estimate
from modalign.numbers.replicates import Replicates
from modalign.training.budget import Budget

LEAST = 3  # methods whose rates show how different rates can be
RESTLESS = 0.5  # standard deviation of rates, at least
OWN = 0.5  # weight of a method's own rate; the rest is that of the mean of all
SURE = 0.5  # a method that is best less often is not named


@dataclass(frozen=True)
class Fall:
    """How the loss of a method fell, between two points at which the learning rate had fallen to zero.

    Attributes:
        rate: b.
        reach: log(n_1 / n_0).
        before, after: log L_0 and log L_1, the mean over trainings.
    """

    rate: float
    reach: float
    before: float
    after: float


def plan_budget(text: str, budget: str) -> float:
    """How many times the budget a larger one is.

    Raises:
        UsageError: it is of another kind, or not larger.
    """
    larger, given = Budget.parse(text), Budget.parse(budget)
    if larger.kind != given.kind:
        raise UsageError(
            f"--plan-for {text} is counted in {larger.kind}, --budget {budget} in {given.kind}: use one of them"
        )
    if larger.amount <= given.amount:
        raise UsageError(f"--plan-for {text} is not larger than --budget {budget}")
    return larger.amount / given.amount


def fall_of(method: MethodResult) -> Fall | None:
    """How a method's loss fell from its trial to the end; None where a point is missing."""
    trial = next((trial for trial in method.trials if trial.kept), None)
    ends = [run.curve[-1] for run in method.seeds if run.curve]
    losses = [point.val_loss for point in ends if point.val_loss]
    if trial is None or not trial.val_loss or not losses:
        return None
    count = max(len(trial.val_losses), 1)  # seeds that share the trial's samples
    first, last = trial.samples / count, float(np.mean([point.samples for point in ends]))
    if not 0 < first < last:
        return None
    reach = math.log(last / first)
    before, after = math.log(trial.val_loss), float(np.mean(np.log(losses)))
    return Fall((before - after) / reach, reach, before, after)


def plan(
    methods: Sequence[MethodResult],
    drawn: Replicates | None,
    budget: str,
    target: str,
    seed: int = 0,
) -> Plan:
    """Foretell accuracies at a larger budget.

    Args:
        methods: of the comparison, with learning curves and trials.
        drawn: replicates of their validation accuracies; only methods that it holds are foretold. None: none.
        budget: of this comparison.
        target: the larger one.
        seed: of the random generator.
    """
    ahead = math.log(plan_budget(target, budget))
    falls = {
        method.name: fall
        for method in methods
        if drawn and method.name in drawn.parts and (fall := fall_of(method)) is not None
    }
    slope = _accuracy_by_loss(methods)
    if drawn is None or len(falls) < LEAST or slope is None:
        words = (
            f"Nothing can be foretold for {Budget.parse(target).words()}: {LEAST} methods with learning "
            "curves and learning-rate trials are needed to see how different curves can be, and there are "
            f"{len(falls)}."
        )
        return Plan(budget=target, method=None, words=words)
    rng, rates = np.random.default_rng(seed), np.array([fall.rate for fall in falls.values()])
    spread, freedom = max(float(rates.std(ddof=1)), RESTLESS), len(falls) - 1
    paths: dict[str, tuple[Floats, Floats]] = {}
    paces: dict[str, float] = {}
    for name, fall in falls.items():
        now = drawn.values[name]
        tails = student.rvs(freedom, size=len(now), random_state=rng)
        middle = OWN * fall.rate + (1 - OWN) * float(rates.mean())
        rate, paces[name] = middle + spread * tails, -slope * middle
        edge = 0.5 / drawn.n
        paths[name] = logit(np.clip(now, edge, 1 - edge)), -slope * np.maximum(rate, 0.0)
    reached = {name: expit(now + gain * ahead) for name, (now, gain) in paths.items()}
    table = np.stack(list(reached.values()))
    best = np.bincount(table.argmax(axis=0), minlength=len(reached)) / table.shape[1]
    found = [
        _foretold(name, reached[name], share, falls, drawn.n)
        for name, share in zip(reached, best.tolist(), strict=True)
    ]
    found.sort(key=lambda each: (-each.best, each.method))
    first = found[0]
    return Plan(
        budget=target,
        method=first.method if first.best >= SURE else None,
        words=_words(found, budget, target),
        methods=found,
        crossings=_crossings(paths, paces, ahead, budget),
    )


def _accuracy_by_loss(methods: Sequence[MethodResult]) -> float | None:
    """Slope of logits of accuracy against log losses along all curves; None where they do not rise as it falls."""
    above, below = 0.0, 0.0
    for method in methods:
        for run in method.seeds:
            points = [
                (math.log(point.val_loss), float(logit(point.val_accuracy)))
                for point in run.curve
                if point.val_loss and point.val_accuracy and point.val_accuracy < 1
            ]
            if len(points) > 1:
                losses, accuracies = np.array(points).T
                losses -= losses.mean()
                above += float(losses @ accuracies)
                below += float(losses @ losses)
    return above / below if below and above < 0 else None


def _foretold(
    name: str, reached: Floats, best: float, falls: Mapping[str, Fall], n: int
) -> Foretold:
    fall = falls[name]
    others = np.array([each.rate for other, each in falls.items() if other != name])
    spread = max(float(others.std(ddof=1)), RESTLESS)
    reach = float(student.ppf(1 - TAIL, len(others) - 1)) * spread
    usual, low, high = (
        math.exp(fall.before - max(float(others.mean()) + side * reach, 0.0) * fall.reach)
        for side in (0, 1, -1)
    )
    low_end, middle, high_end = np.quantile(reached, [TAIL, 0.5, 1 - TAIL]).tolist()
    return Foretold(
        method=name,
        accuracy=Estimate(
            value=middle,
            low=low_end,
            high=high_end,
            n=n,
            over="questions",
            interval="extrapolation",
        ),
        best=best,
        rate=fall.rate,
        past=Estimate(value=usual, low=low, high=high, n=n, interval="extrapolation", unit="nats"),
        happened=math.exp(fall.after),
    )


def _crossings(
    paths: Mapping[str, tuple[Floats, Floats]],
    paces: Mapping[str, float],
    ahead: float,
    budget: str,
) -> list[Crossing]:
    """Pairs whose order is foretold to turn, where, and how probably; the surest first."""
    given, found = Budget.parse(budget), []
    for one, other in combinations(paths, 2):
        (now, gain), (theirs, their_gain) = paths[one], paths[other]
        leads = float(np.median(now - theirs))
        behind, leader = (one, other) if leads < 0 else (other, one)
        turned = np.sign(now + gain * ahead - theirs - their_gain * ahead) == -np.sign(leads)
        pace = paces[other] - paces[one]
        place = leads / pace if pace else math.inf
        if leads and 0 < place <= ahead:
            at = Budget(given.kind, given.amount * math.exp(place))
            found.append(
                Crossing(
                    leader=leader, behind=behind, budget=at.amount, probability=float(turned.mean())
                )
            )
    return sorted(found, key=lambda crossing: -crossing.probability)


def _words(found: Sequence[Foretold], budget: str, target: str) -> str:
    first, given, larger = found[0], Budget.parse(budget), Budget.parse(target)
    if first.best >= SURE:
        return (
            f"At {larger.words()} the best is foretold to be {first.method}, at {fmt.interval(first.accuracy)} of "
            f"validation questions; it is so in {fmt.percent(first.best)} of what the curves allow."
        )
    possible = [each.method for each in found if each.best >= 0.05]
    between = Budget(given.kind, float(f"{math.sqrt(given.amount * larger.amount):.1g}"))
    return (
        f"The curves cannot tell which method is best at {larger.words()}: {first.method} is in "
        f"{fmt.percent(first.best)} of what they allow. A comparison of {fmt.names(possible)} at "
        f"{between.words()} would tell most."
    )
