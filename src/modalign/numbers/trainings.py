"""The uncertainty of a model's accuracy over both questions and trainings.

A method was trained S times (seeds), and every training answered the same n questions. Another training or
other questions would give another accuracy. Both are resampled:

* **questions** are resampled once per replicate and *shared by all methods*, so differences are paired. Questions
  with the same label (about one image) are resampled together; there are G such groups.
* **trainings** are drawn for each method separately, from the normal distribution estimated from their accuracies
  and those of all methods (:mod:`~modalign.numbers.spreads`), including methods trained once. If no
  method was trained twice, only questions are resampled, and intervals do not cover other trainings.

Trainings and questions are crossed, not nested. With m_t the accuracy of training t, V_s = var(m_t) / S, V_q the
variance of the mean over trainings by resampled questions, and V_e that of the interaction of training and
question (the residual of the two-way table), V_s and V_q each contain V_e once, and the mean over trainings has
the variance V_s + V_q - V_e (Owen 2007, Ann. Appl. Stat. 1, on the pigeonhole bootstrap; Searle, Casella and
McCulloch 1992, ch. 4). So the deviations by questions are shrunk by sqrt(1 - V_e / V_q).

V_s has S - 1 degrees of freedom plus those borrowed from the other methods; the rest has G - 1. ``replicates``
combines them into intervals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.numbers.bootstrap import RESAMPLES, Floats, Groups, cluster_sums, redraw
from modalign.numbers.estimate import Estimate
from modalign.numbers.replicates import Part, Replicates, on_logit_scale
from modalign.numbers.shares import share
from modalign.numbers.spreads import Spread, shared_spreads


def hierarchical_bootstrap(
    correct: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    skills: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    fixed: Collection[str] = (),
) -> Replicates:
    """Resample trainings and questions; questions are shared by all methods.

    Args:
        correct: method -> (S, n), 1 if a question was answered correctly (any number is allowed:
            partial credit, or a difference of two conditions). S may differ, n may not.
        groups: (n,) labels of questions resampled together; None forms its own group.
        skills: (n,) the skill of each question, or None.
        resamples: R. For tests of many pairs use :func:`modalign.numbers.pairs.resamples_for`.
        seed: of the random generator; equal seeds give equal replicates.
        fixed: methods without training, whose answers never change.
    """
    arrays = _checked(correct)
    n = next(iter(arrays.values())).shape[1]
    whole = _replicates(arrays, np.ones((1, n)), groups, resamples, seed, fixed)[0]
    if skills is None:
        return whole
    names, members = _skill_masks(skills, n)
    if names:
        few = min(resamples, RESAMPLES)
        parts = _replicates(arrays, members, groups, few, seed + 1, fixed)
        whole.skills.update(zip(names, parts, strict=True))
    return whole


def estimate_means(
    values: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    fixed: Collection[str] = (),
    unit: str = "share",
) -> dict[str, Estimate]:
    """Estimate the means of every method's values, (S, n); see :func:`hierarchical_bootstrap`.

    For gains (the same trained model with and without its image) pass the differences of the two
    arrays: trainings and questions are then paired by construction.
    """
    if not values:
        return {}
    drawn = hierarchical_bootstrap(values, groups=groups, fixed=fixed)
    return {name: drawn.estimate(name, unit=unit) for name in values}


def estimate_mean(
    values: ArrayLike,
    *,
    groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    unit: str = "share",
) -> Estimate:
    """Estimate the mean of (S, n) or (n,) values of a single model."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    drawn = hierarchical_bootstrap({"": array}, groups=groups, resamples=resamples, seed=seed)
    return drawn.estimate("", unit=unit)


def estimate_ratio(
    above: ArrayLike, below: ArrayLike, *, groups: Groups | None = None
) -> Estimate | None:
    """Estimate the ratio of a single model; see :func:`estimate_ratios`."""
    found = estimate_ratios({"": np.atleast_2d(above)}, {"": np.atleast_2d(below)}, groups=groups)
    return found[""]


def estimate_ratios(
    above: Mapping[str, ArrayLike],
    below: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    fixed: Collection[str] = (),
) -> dict[str, Estimate | None]:
    """Estimate ratios of sums, ``above`` over ``below``, method -> (S, n); None if the denominator is zero.

    By linearisation (Woodruff 1971, J. Am. Stat. Assoc. 66): a question's contribution to r = sum(a) / sum(b) is
    r + (a - r b) / mean(b), whose mean is r. ``n`` is the number of questions in the denominator, averaged over
    trainings.
    """
    pairs = {
        name: (np.asarray(above[name], dtype=np.float64), np.asarray(below[name], dtype=np.float64))
        for name in above
    }
    ratios = {name: float(a.mean() / b.mean()) for name, (a, b) in pairs.items() if b.any()}
    parts = {
        name: r + (pairs[name][0] - r * pairs[name][1]) / pairs[name][1].mean()
        for name, r in ratios.items()
    }
    drawn = estimate_means(parts, groups=groups, fixed=fixed, unit="ratio")
    return {
        name: _as_share(drawn[name], ratios[name], b) if name in ratios else None
        for name, (_, b) in pairs.items()
    }


def _as_share(linear: Estimate, value: float, below: Floats) -> Estimate:
    """Convert the estimate of the linearised values to that of the ratio."""
    n = round(float((below > 0).sum(axis=1).mean()))
    if value in (0.0, 1.0):
        found = share([value] * max(n, 1))
        return found.model_copy(update={"trainings": len(below), "over": "questions"})
    low, high = on_logit_scale(value, linear.low - value, linear.high - value)
    return linear.model_copy(
        update={"value": value, "low": low, "high": high, "n": n, "unit": "share"}
    )


def _checked(correct: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Return every array as (S, n) floats; raise ValueError for unusable shapes or values."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in correct.items()}
    if not arrays:
        raise ValueError("no method to resample")
    for name, array in arrays.items():
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name}: expected (seeds, items), got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: has values that are not numbers; count them as wrong")
    counts = {array.shape[1] for array in arrays.values()}
    if len(counts) > 1:
        raise ValueError(f"methods answered different numbers of items: {sorted(counts)}")
    return arrays


def _skill_masks(skills: Sequence[str | None], n: int) -> tuple[list[str], Floats]:
    """Return the names of the skills and (K, n) membership."""
    if len(skills) != n:
        raise ValueError(f"{len(skills)} skills for {n} items")
    names = sorted({skill for skill in skills if skill is not None})
    members = [[float(skill == name) for skill in skills] for name in names]
    return names, np.array(members, dtype=np.float64).reshape(len(names), n)


@dataclass(frozen=True)
class _Table:
    """Sums per group of questions, for K sets of questions and the T trainings of all methods."""

    sums: Floats  # (G, K, T) of right answers
    sizes: Floats  # (G, K) questions
    rows: dict[str, slice]  # method -> its trainings among T

    @property
    def means(self) -> Floats:
        """(K, T) accuracy of every training."""
        return self.sums.sum(axis=0) / self.sizes.sum(axis=0)[:, None]

    @property
    def units(self) -> NDArray[np.intp]:
        """(K,) numbers of groups with questions in the set."""
        return np.asarray((self.sizes > 0).sum(axis=0))


def _replicates(
    arrays: Mapping[str, Floats],
    members: Floats,
    groups: Groups | None,
    resamples: int,
    seed: int,
    fixed: Collection[str],
) -> list[Replicates]:
    """Replicates for each of K sets of questions, (K, n)."""
    table = _tabulate(arrays, members, groups)
    K, T = table.means.shape
    both = np.concatenate([table.sums.reshape(len(table.sums), K * T), table.sizes], axis=1)
    drawn = redraw(both, resamples=resamples, seed=seed)[1:]
    with np.errstate(invalid="ignore"):
        redrawn = drawn[:, : K * T].reshape(-1, K, T) / drawn[:, K * T :, None]
    luck = np.random.default_rng((seed, 1)).normal(size=(len(arrays), resamples))
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    bounds = (float(everything.min()), float(everything.max()))
    if bounds[0] >= 0 and bounds[1] <= 1:
        bounds = (0.0, 1.0)
    found = []
    for k in range(K):
        inside, units = members[k] > 0, int(table.units[k])
        widened = np.sqrt(units / max(units - 1, 1))
        twice = {name: _twice(table, k, rows) for name, rows in table.rows.items()}
        spreads = _spreads(table, k, twice, fixed, bounds == (0.0, 1.0))
        parts = {}
        for place, (name, rows) in enumerate(table.rows.items()):
            value = float(arrays[name][:, inside].mean())
            parts[name] = Part(
                value,
                questions=widened * (redrawn[:, k, rows].mean(axis=1) - value),
                luck=luck[place] * np.sqrt(known.variance if (known := spreads[name]) else 0.0),
                twice=twice[name],
                spread=spreads[name],
                trainings=None if name in fixed else len(arrays[name]),
            )
        freedom = sum(len(array) - 1 for name, array in arrays.items() if name not in fixed)
        found.append(Replicates(parts, int(inside.sum()), units, bounds, freedom))
    return found


def _tabulate(arrays: Mapping[str, Floats], members: Floats, groups: Groups | None) -> _Table:
    K, n = members.shape
    rows, first = {}, 0
    for name, array in arrays.items():
        rows[name] = slice(first, first + len(array))
        first += len(array)
    answers = np.concatenate(list(arrays.values())).T  # (n, T)
    each = members.T[:, :, None] * answers[:, None, :]
    sums = cluster_sums(np.concatenate([each.reshape(n, -1), members.T], axis=1), groups)
    return _Table(sums[:, : K * first].reshape(-1, K, first), sums[:, K * first :], rows)


def _twice(table: _Table, k: int, rows: slice) -> float:
    """Return V_e, the interaction variance of the mean over trainings, from the residuals."""
    units, trainings = int(table.units[k]), rows.stop - rows.start
    if units < 2 or trainings == 1:
        return 0.0
    parts = table.sums[:, k, rows] - table.means[k, rows] * table.sizes[:, k, None]  # (G, S)
    alone = parts - parts.mean(axis=1, keepdims=True)
    squares = float((alone**2).sum()) / ((units - 1) * (trainings - 1))
    return squares * units / trainings / float(table.sizes[:, k].sum()) ** 2


def _spreads(
    table: _Table, k: int, twice: Mapping[str, float], fixed: Collection[str], shares: bool
) -> dict[str, Spread | None]:
    """Return V_s of every method, by :mod:`modalign.numbers.spreads`; None if unknown.

    Shares are compared on the logit scale, since at 95 % there is less room for trainings to differ than
    at 60 %. A method trained once gets the variance between trainings without V_e, which its questions contain.
    """
    trained = [name for name in table.rows if name not in fixed]
    accuracies = [table.means[k, table.rows[name]] for name in trained]
    counts = [len(found) for found in accuracies]
    slopes = np.ones(len(trained))
    if shares:
        edge = 0.5 / float(table.sizes[:, k].sum())
        middle = np.clip([found.mean() for found in accuracies], edge, 1 - edge)
        slopes = middle * (1 - middle)
    seen = [found.var(ddof=1) if len(found) > 1 else 0.0 for found in accuracies]
    shared = shared_spreads(seen / slopes**2, counts)
    found: dict[str, Spread | None] = {name: Spread() for name in table.rows}
    if shared is None:
        alike = {name for name, count in zip(trained, counts, strict=True) if count > 1}
        return found | dict.fromkeys(set(trained) - alike)
    # Luck on single questions, S V_e: of a share in proportion to its slope.
    lucky = [
        count * twice[name] / slope
        for name, count, slope in zip(trained, counts, slopes, strict=True)
        if count > 1
    ]
    for name, count, slope, spread in zip(trained, counts, slopes, shared, strict=True):
        variance = spread.variance * float(slope) ** 2
        if count == 1:
            variance = max(0.0, variance - float(np.mean(lucky) * slope))
        found[name] = Spread(variance, spread.freedom).over(count)
    return found
