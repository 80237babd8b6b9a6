"""The choice of a method by a named rule, from validation data only.

Evaluation data is not used here, because data that selected a method must not also judge it.

The rule, **cheapest-of-the-best**: of the candidates that are indistinguishable from the best on
validation, take the cheapest. "Indistinguishable": the gap to the best is at most one standard error
of the paired difference (the one-standard-error rule of Breiman et al., CART, 1984, section 3.4.3),
or at most one point, whichever is larger. "Cheapest": fewest FLOPs per answer (training FLOPs if
unknown; rounded to two digits), then fewest tokens, then fewest trainable
parameters, then the easiest to serve, then the higher validation accuracy. If the best stands
alone, the rule is called **best-alone**.

**None** is recommended if no candidate beats what it must: the best, on validation, of chance, the
majority answer, every control (the language model without the medium) and, for a method that trains,
its own model before the first step. It must do so by a significant difference (:mod:`~modalign.numbers.pairs`,
corrected for the number of candidates). Questions are resampled but trainings are not, because whether these
models have learnt anything does not depend on other trainings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from modalign.comparison.results import MethodResult, Recommendation, Setting
from modalign.connectors.rungs import height
from modalign.errors import UsageError
from modalign.numbers import words as fmt
from modalign.numbers.bootstrap import RESAMPLES, Floats, Groups
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference, compare_with, difference_estimate
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import hierarchical_bootstrap
from modalign.runs import command_with
from modalign.training.budget import Budget
from modalign.training.doctor.facts import unknown_words
from modalign.training.splits import few_to_choose_by

MARGIN = 0.01
RULES = {
    "cheapest-of-the-best": "the cheapest of the methods that validation cannot tell from the best",
    "best-alone": "the best method on validation, which stands alone",
    "only-candidate": "the only method that was left to choose from",
    "none": "no method beats what a guess, a control or the untrained model reaches",
}


@dataclass(frozen=True)
class Cost:
    """A method's costs, the rule's criteria besides accuracy."""

    trainable_parameters: int
    tokens: int
    flops: float  # training, all stages
    inference_flops: float | None = None  # one item, forward
    seconds: float | None = None
    serving: str = "remote-code"


CostKey = tuple[float, float, float, float]


def rank_by_validation(val_accuracy: Mapping[str, float]) -> list[str]:
    """Sort methods from best to worst by validation accuracy; ties by name."""
    return sorted(val_accuracy, key=lambda name: (-val_accuracy[name], name))


def recommend(
    correct: Mapping[str, ArrayLike],
    costs: Mapping[str, Cost],
    *,
    groups: Sequence[str | None] | None = None,
    margin: float = MARGIN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    drawn: Replicates | None = None,
    measure: str = "accuracy",
) -> Recommendation:
    """Choose among candidates and estimate the confidence of the choice.

    Args:
        correct: candidate -> (S, n) right answers on **validation** questions, the same for all.
        costs: candidate -> its cost.
        groups: (n,) labels of questions by image; they are resampled together.
        margin: accuracy gap that does not justify a higher cost.
        resamples: bootstrap replicates behind the confidence.
        seed: of the random generator.
        drawn: replicates of the answers, if already computed.
        measure: what the mean of the answers' scores is called.
    """
    missing = sorted(set(correct) - set(costs))
    if missing:
        raise UsageError(f"no cost is known for {fmt.names(missing)}")
    drawn = drawn or hierarchical_bootstrap(correct, groups=groups, resamples=resamples, seed=seed)
    names = list(drawn.observed)
    keys = cost_keys({name: costs[name] for name in names})
    tolerance = _tolerance(drawn, names, margin)
    observed = np.array([drawn.observed[name] for name in names])
    chosen, alike = _choose(observed, tolerance, names, keys)
    best = int(observed.argmax())
    picks = Counter(_picks(drawn, tolerance, names, keys))
    shares = {name: count / picks.total() for name, count in picks.most_common()}
    rule = _rule_name(len(names), len(alike))
    group = rank_by_validation({name: drawn.observed[name] for name in alike})
    return Recommendation(
        method=chosen,
        rule=rule,
        reason=_reason(chosen, names[best], group, drawn, measure),
        price=price(chosen, drawn, costs, keys),
        confidence=shares.get(chosen, 0.0),
        alternatives={name: share for name, share in shares.items() if name != chosen},
        best=names[best],
        indistinguishable=group,
        validation={name: drawn.estimate(name) for name in names},
    )


def against_bars(
    correct: Mapping[str, ArrayLike],
    bars: Mapping[str, Mapping[str, Floats]],
    *,
    groups: Groups | None = None,
) -> list[Difference]:
    """Compare every method's trainings, held fixed, with the best row that they must beat.

    Args:
        correct: method -> (S, n) right answers on **validation** questions.
        bars: method -> row -> (n,) its share of right answers to each question.
        groups: (n,) labels of questions resampled together.
    """
    best = {name: max(bars[name], key=lambda row: bars[name][row].mean()) for name in correct}
    gains = {
        name: np.asarray(answers, dtype=float).mean(axis=0, keepdims=True) - bars[name][best[name]]
        for name, answers in correct.items()
    }
    found = compare_with("their bars", np.zeros(1), gains, groups=groups)
    return [pair.model_copy(update={"second": best[pair.first]}) for pair in found]


def checked(
    found: Recommendation, against: list[Difference], advice: Sequence[str]
) -> Recommendation:
    """Return the recommendation if some candidate beats what it must; else none, with advice."""
    if any(pair.verdict == "first" for pair in against):
        return found.model_copy(update={"against": against})
    nearest = next(pair for pair in against if pair.first == found.best)
    reached = found.validation[found.best].value
    reason = (
        f"No method is better on validation than what needs no training. The best, {found.best}, is right in "
        f"{fmt.percent(reached)} of the answers, {nearest.second} in "
        f"{fmt.percent(reached - nearest.difference.value)}; difference "
        f"{fmt.point_interval(nearest.difference)} points."
    )
    changed = {
        "method": None,
        "rule": "none",
        "reason": reason,
        "price": "",
        "advice": list(advice),
    }
    return found.model_copy(
        update={**changed, "confidence": None, "alternatives": {}, "against": against}
    )


def what_to_change(best: MethodResult, setting: Setting, out: Path) -> list[str]:
    """Advise what to change if nothing was learnt, from the run's results; last, a command that does it.

    Args:
        best: the candidate with the highest validation accuracy.
        setting: how the comparison was run.
        out: the folder of the run; the command writes beside it.
    """
    advice: list[str] = []
    options: dict[str, str] = {}
    if unknown := unknown_words(best.name, best.untrained_loss):
        advice.append(f"{unknown}: name the form in the question, or choose another model (--llm).")
    losses = [point.val_loss for point in best.seeds[0].curve if point.val_loss is not None]
    if len(losses) > 1 and losses[-1] < losses[-2]:
        advice.append(
            f"The validation loss of {best.name} was still falling at the end ({losses[-2]:.2f}, then "
            f"{losses[-1]:.2f}): give more than {Budget.parse(setting.budget).words()} (--budget)."
        )
        options["--budget"] = str(Budget.parse(setting.budget).share(4))
    else:
        advice.append(
            f"More budget alone may not help: the validation loss of {best.name} had stopped falling."
        )
    if setting.llm_mode != "full":
        further = "lora, or full" if setting.llm_mode == "frozen" else "full"
        advice.append(
            f"The language model was trained as '{setting.llm_mode}': let more of it train "
            f"(--train-llm {further})."
        )
        options["--train-llm"] = further.partition(",")[0]
    records = f"{setting.train_records:,} training and {setting.val_records:,} validation records"
    few = few_to_choose_by(setting.val_records)
    advice.append(f"There were {records}: give more (--train, --val){f'; {few}' if few else ''}.")
    if options and (command := command_with("compare", {**options, "--out": f"{out}-again"})):
        advice.append(f"What options alone can change, as a command: {command}")
    return advice


def cost_keys(costs: Mapping[str, Cost]) -> dict[str, CostKey]:
    """Return the rule's sort keys; FLOPs per answer only if known for every method."""
    per_answer = all(cost.inference_flops is not None for cost in costs.values())
    return {
        name: (
            _two_digits((cost.inference_flops or 0.0) if per_answer else cost.flops),
            float(cost.tokens),
            float(cost.trainable_parameters),
            float(height(cost.serving)),
        )
        for name, cost in costs.items()
    }


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def _tolerance(drawn: Replicates, names: Sequence[str], margin: float) -> np.ndarray:
    """Return the (m, m) gap up to which two methods are indistinguishable: one standard error, or the margin."""
    replicates = drawn.values
    values = np.stack([replicates[name] for name in names])
    errors = (values[:, None, :] - values[None, :, :]).std(axis=2)
    return np.maximum(errors, margin)


def _choose(
    accuracy: np.ndarray, tolerance: np.ndarray, names: Sequence[str], keys: Mapping[str, CostKey]
) -> tuple[str, list[str]]:
    """Return the rule's choice and the methods indistinguishable from the best."""
    best = int(accuracy.argmax())
    gaps = accuracy[best] - accuracy
    alike = [i for i in range(len(names)) if gaps[i] <= tolerance[best, i] + 1e-12]
    pick = min(alike, key=lambda i: (keys[names[i]], -accuracy[i], names[i]))
    return names[pick], [names[i] for i in alike]


def replicate_picks(
    drawn: Replicates, costs: Mapping[str, Cost], margin: float = MARGIN
) -> list[str]:
    """Return the rule's choice in each replicate."""
    names = list(drawn.observed)
    return _picks(drawn, _tolerance(drawn, names, margin), names, cost_keys(costs))


def _picks(
    drawn: Replicates, tolerance: np.ndarray, names: Sequence[str], keys: Mapping[str, CostKey]
) -> list[str]:
    replicates = drawn.again
    values = np.stack([replicates[name] for name in names], axis=1)
    return [_choose(row, tolerance, names, keys)[0] for row in values]


def _rule_name(candidates: int, alike: int) -> str:
    if candidates == 1:
        return "only-candidate"
    return "best-alone" if alike == 1 else "cheapest-of-the-best"


def _reason(
    chosen: str,
    best: str,
    alike: Sequence[str],
    drawn: Replicates,
    measure: str,
) -> str:
    top = f"{best} has the highest validation {measure} ({fmt.percent(drawn.observed[best])})"
    if len(drawn.observed) == 1:
        return f"{top}; there was no other method to choose."
    if len(alike) == 1:
        return f"{top} and every other method lies more than one standard error below it."
    others = [name for name in alike if name != best]
    gap = drawn.observed[best] - min(drawn.observed[name] for name in alike)
    near = (
        f"{top}; {fmt.names(others)} cannot be told from it "
        f"({'at most ' if len(others) > 1 else ''}{gap * 100:.1f} points below, within one "
        f"standard error or the margin)"
    )
    return f"{near}. Of these {chosen} is the cheapest."


def price(
    chosen: str, drawn: Replicates, costs: Mapping[str, Cost], keys: Mapping[str, CostKey]
) -> str:
    """Describe the cost of the choice against the best more expensive and the best cheaper method."""
    cost = costs[chosen]
    compute = (
        f"{fmt.flops(cost.inference_flops)} an answer"
        if cost.inference_flops is not None
        else f"{fmt.flops(cost.flops)} of training"
    )
    told = [
        f"{chosen} costs {fmt.count(cost.trainable_parameters)} trainable parameters, "
        f"{fmt.count(cost.tokens)} tokens an item and {compute}."
    ]
    dearer = [name for name in drawn.observed if keys[name] > keys[chosen]]
    cheaper = [name for name in drawn.observed if keys[name] < keys[chosen]]
    for others, furthest in ((dearer, max), (cheaper, min)):
        if others:
            other = max(others, key=lambda name: drawn.observed[name])
            gap = difference_estimate(drawn, other, chosen)
            told.append(f"{other} costs {_beside(costs[other], cost, furthest)} for {_gap(gap)}.")
    return " ".join(told)


def _beside(cost: Cost, other: Cost, furthest: Callable[..., str]) -> str:
    """Compare two costs where the first is most above the second (``max``) or below: ``four times the tokens``."""
    pairs = (
        ("tokens", cost.tokens, other.tokens),
        ("trainable parameters", cost.trainable_parameters, other.trainable_parameters),
        ("compute per answer", cost.inference_flops, other.inference_flops),
    )
    ratios = {what: one / two for what, one, two in pairs if one and two}
    what = furthest(ratios, key=lambda each: ratios[each], default="")
    if not what or abs(ratios[what] - 1) < 0.05:
        return "about as much"
    return fmt.times(ratios[what], what)


def _gap(gap: Estimate) -> str:
    """``5.6 points less (2.1 to 9.0)``; both directions are named if the interval contains zero."""
    sign, word, against = (1, "more", "less") if gap.value >= 0 else (-1, "less", "more")
    value, (near, far) = sign * gap.value, sorted((sign * gap.low, sign * gap.high))
    ends = f"{near * 100:.1f} to {far * 100:.1f}"
    if near < 0:
        ends = f"{-near * 100:.1f} {against} to {far * 100:.1f} {word}"
    return f"{value * 100:.1f} points {word} ({ends})"
