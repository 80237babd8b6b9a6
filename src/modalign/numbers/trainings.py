"""How sure a model's accuracy is when both its questions and its trainings are samples.

A method was trained S times (seeds) and every training answered the same n questions. Another training and
other questions would give another accuracy. Both are redrawn:

* **questions** are redrawn once per replicate and *shared by all methods*, so differences are paired. Questions
  with one label (about one image) are redrawn together; there are G such groups.
* **trainings** are redrawn for each method on its own, from the normal distribution that their accuracies
  suggest. A method trained once has its questions redrawn only: its interval says nothing about another
  training, unless it is lent the spread of the others (``spread="lent"``).

Trainings and questions are crossed, not nested. With m_t the accuracy of training t, V_s = var(m_t) / S, V_q the
variance that redrawn questions give to the mean over trainings, and V_e that of training and question together
(the residual of the two-way table), V_s and V_q each hold V_e once, and the mean over trainings has the variance
V_s + V_q - V_e (Owen 2007, Ann. Appl. Stat. 1, on the pigeonhole bootstrap; Searle, Casella and McCulloch
1992, ch. 4). So what the questions give is shrunk by sqrt(1 - V_e / V_q).

V_s is known to S - 1 degrees of freedom, the rest to G - 1: ``replicates`` makes intervals of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.numbers.bootstrap import RESAMPLES, Floats, Groups, cluster_sums, redraw
from modalign.numbers.estimate import Estimate
from modalign.numbers.replicates import Part, Replicates, Spread, on_logit_scale
from modalign.numbers.shares import share

Lending = Literal["own", "lent"]


def hierarchical_bootstrap(
    correct: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    skills: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    spread: Lending = "own",
) -> Replicates:
    """Redraw trainings and questions; questions are shared by all methods.

    Args:
        correct: method -> (S, n), 1 where a question was answered rightly (any number is allowed:
            partial credit, or a difference of two conditions). S may differ, n may not.
        groups: (n,) questions with an equal label are redrawn together; None is a group of its own.
        skills: (n,) the skill each question belongs to; None belongs to none.
        resamples: R. For tests of many pairs use :func:`modalign.numbers.pairs.resamples_for`.
        seed: of the random generator; equal seeds give equal replicates.
        spread: ``own``: each method's trainings speak for themselves. ``lent``: methods trained once
            vary as much as the methods trained several times do on average; use it for differences, where
            one lucky training would pass for news.
    """
    arrays = _checked(correct)
    n = next(iter(arrays.values())).shape[1]
    whole = _replicates(arrays, np.ones((1, n)), groups, resamples, seed, spread)[0]
    if skills is None:
        return whole
    names, members = _skill_masks(skills, n)
    if names:
        few = min(resamples, RESAMPLES)
        parts = _replicates(arrays, members, groups, few, seed + 1, spread)
        whole.skills.update(zip(names, parts, strict=True))
    return whole


def estimate_mean(
    values: ArrayLike,
    *,
    groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    unit: str = "share",
) -> Estimate:
    """Estimate the mean of (S, n) or (n,) values.

    For a gain (the same trained model with and without its image) pass the difference of the two
    arrays: trainings and questions are then paired by construction.
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    drawn = hierarchical_bootstrap({"": array}, groups=groups, resamples=resamples, seed=seed)
    return drawn.estimate("", unit=unit)


def estimate_ratio(
    above: ArrayLike, below: ArrayLike, *, groups: Groups | None = None
) -> Estimate | None:
    """Estimate a share of sums, ``above`` over ``below``, both (S, n); None where the sum below is zero.

    By linearisation (Woodruff 1971, J. Am. Stat. Assoc. 66): a question's part in r = sum(a) / sum(b) is
    r + (a - r b) / mean(b), whose mean is r. ``n`` counts the questions below, the mean over trainings.
    """
    a, b = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (above, below))
    mean = float(b.mean())
    if not mean:
        return None
    value = float(a.mean()) / mean
    n = round(float((b > 0).sum(axis=1).mean()))
    if value in (0.0, 1.0):
        found = share([value] * max(n, 1))
        return found.model_copy(update={"trainings": len(a), "over": "questions"})
    found = estimate_mean(value + (a - value * b) / mean, groups=groups, unit="ratio")
    low, high = on_logit_scale(value, found.low - value, found.high - value)
    return found.model_copy(
        update={"value": value, "low": low, "high": high, "n": n, "unit": "share"}
    )


def _checked(correct: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Every array as (S, n) floats; ValueError where shapes or values cannot be used."""
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
    """Names of the skills and (K, n) membership."""
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
        """(K,) groups that have questions of the set."""
        return np.asarray((self.sizes > 0).sum(axis=0))


def _replicates(
    arrays: Mapping[str, Floats],
    members: Floats,
    groups: Groups | None,
    resamples: int,
    seed: int,
    spread: Lending,
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
        spreads = _spreads(table, k, twice, spread)
        parts = {}
        for place, (name, rows) in enumerate(table.rows.items()):
            value = float(arrays[name][:, inside].mean())
            parts[name] = Part(
                value,
                questions=widened * (redrawn[:, k, rows].mean(axis=1) - value),
                luck=luck[place] * np.sqrt(spreads[name].variance),
                twice=twice[name],
                spread=spreads[name],
                trainings=len(arrays[name]),
            )
        found.append(Replicates(parts, int(inside.sum()), units, bounds))
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
    """V_e: variance of the mean over trainings that both trainings and questions bring, by the residuals."""
    units, trainings = int(table.units[k]), rows.stop - rows.start
    if units < 2 or trainings == 1:
        return 0.0
    parts = table.sums[:, k, rows] - table.means[k, rows] * table.sizes[:, k, None]  # (G, S)
    alone = parts - parts.mean(axis=1, keepdims=True)
    squares = float((alone**2).sum()) / ((units - 1) * (trainings - 1))
    return squares * units / trainings / float(table.sizes[:, k].sum()) ** 2


def _spreads(
    table: _Table, k: int, twice: Mapping[str, float], spread: Lending
) -> dict[str, Spread]:
    """Every method's spread between trainings. A spread shared between methods belongs here.

    A method trained once is lent the variance between trainings without V_e, which its own questions show.
    """
    found = {name: Spread() for name in table.rows}
    squares, freedom = 0.0, 0
    for name, rows in table.rows.items():
        count = rows.stop - rows.start
        if count > 1:
            variance = float(table.means[k, rows].var(ddof=1))
            found[name] = Spread(variance / count, count - 1)
            squares += (variance - count * twice[name]) * (count - 1)
            freedom += count - 1
    if spread == "lent" and freedom:
        lent = Spread(max(0.0, squares / freedom), freedom)
        found |= {name: lent for name, rows in table.rows.items() if rows.stop - rows.start == 1}
    return found
