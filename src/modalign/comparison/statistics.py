"""How sure the numbers are: hierarchical bootstrap, paired differences, Holm's correction.

A method was trained under S seeds and every training answered the same n questions. Both are
samples: another seed and other questions would give another accuracy. The hierarchical bootstrap
(Efron 1979; for nested data Saravanan, Berman and Sober 2020, arXiv 2007.07797) redraws both:

* **questions** are redrawn once per replicate and *shared by all methods*, so differences are
  paired. Questions about one image stand or fall together, so whole groups are redrawn when groups
  are given (cluster bootstrap).
* **seeds** are redrawn with replacement for each method on its own. S numbers drawn with
  replacement vary too little, by (S - 1) / S; the deviations from the mean of the seeds are
  stretched by sqrt(S / (S - 1)) (Davison and Hinkley 1997, section 2.3). A method with one seed has
  questions redrawn only: its interval says nothing about other seeds. (``borrow_seeds`` lends it
  the other methods' spread.)

Seeds and questions are crossed, not nested. Redrawing both at once would count a seed's luck on
single questions three times (the pigeonhole bootstrap, Owen 2007), and three seeds would look no
surer than one. So a replicate adds the two: the redrawn questions' mean over all seeds, plus the
redrawn seeds' deviation on all questions. That still counts the luck twice: intervals are a little
wide rather than narrow, which a spread estimated from three seeds can use. Simulated coverage of
"95 %" with 400 questions: 93 % with three seeds 3 points apart (standard deviation), 88 % with
three seeds 6 points apart; more seeds, not more questions, help there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.comparison.results import Difference
from modalign.evaluation.multiplicity import holm
from modalign.numbers.estimate import Estimate

RESAMPLES = 2000
ALPHA = 0.05
_CHUNK = 4_000_000  # elements of the count matrix held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replicates:
    """Bootstrap replicates of every method's accuracy on one set of questions.

    Attributes:
        observed: method -> accuracy, the mean over seeds and questions.
        values: method -> (R,) accuracies of the replicates, paired across methods.
        n: questions.
        skills: skill -> the same for the questions of that skill alone.
    """

    observed: dict[str, float]
    values: dict[str, Floats]
    n: int
    skills: dict[str, Replicates] = field(default_factory=dict)


@dataclass(frozen=True)
class _Table:
    """Per-cluster sums: K columns (skills), T trainings of all methods, G clusters."""

    sums: Floats  # (K, T, G)
    sizes: Floats  # (K, G)
    trainings: dict[str, slice]  # method -> its rows among T


def resamples_for(methods: int) -> int:
    """Replicates enough for Holm's smallest step among all pairs of ``methods``.

    The smallest p-value R replicates can give is 2 / (R + 1); times the number of pairs it must
    lie well below 5 % (here 1 %), or no difference could ever be found.
    """
    pairs = methods * (methods - 1) // 2
    return max(RESAMPLES, 200 * pairs)


def hierarchical_bootstrap(
    correct: Mapping[str, ArrayLike],
    *,
    groups: Sequence[str | None] | None = None,
    skills: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    borrow_seeds: bool = False,
) -> Replicates:
    """Redraw seeds and questions; questions are shared by all methods.

    Args:
        correct: method -> (S, n), 1 where a question was answered rightly (any number is allowed:
            partial credit, or a difference of two conditions). S may differ, n may not.
        groups: (n,) questions with an equal label are redrawn together; None is a group of its own.
        skills: (n,) the skill each question belongs to; None belongs to none.
        resamples: R. For :func:`differences` use :func:`resamples_for`.
        seed: of the random generator; equal seeds give equal replicates.
        borrow_seeds: let methods with one seed vary as much as the methods with several do on
            average. Use it for :func:`differences`, where one lucky seed would pass for news.
    """
    arrays = _checked(correct)
    n = next(iter(arrays.values())).shape[1]
    clusters = _cluster_ids(groups, n)
    rng = np.random.default_rng(seed)
    whole = np.ones((1, n))
    everything = _bootstrap(arrays, clusters, whole, resamples, rng, borrow_seeds=borrow_seeds)
    result = _replicates(arrays, everything, 0, np.ones(n, dtype=bool))
    if skills is not None:
        names, members = _skill_masks(skills, n)
        if names:
            few = min(resamples, RESAMPLES)
            drawn = _bootstrap(arrays, clusters, members, few, rng, borrow_seeds=borrow_seeds)
            for index, name in enumerate(names):
                mask = members[index] > 0
                result.skills[name] = _replicates(arrays, drawn, index, mask)
    return result


def interval(replicates: Replicates, method: str) -> Estimate:
    """95 % percentile interval of one method's accuracy."""
    return _interval(replicates.observed[method], replicates.values[method], replicates.n)


def skill_intervals(replicates: Replicates, method: str) -> dict[str, Estimate]:
    """95 % percentile interval of one method's accuracy per skill."""
    return {skill: interval(part, method) for skill, part in sorted(replicates.skills.items())}


def mean_interval(
    values: ArrayLike,
    *,
    groups: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of (S, n) or (n,) values with its interval.

    For a gain (the same trained model with and without its image) pass the difference of the two
    arrays: seeds and questions are then paired by construction.
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    drawn = hierarchical_bootstrap({"": array}, groups=groups, resamples=resamples, seed=seed)
    return interval(drawn, "")


def difference_interval(replicates: Replicates, first: str, second: str) -> Estimate:
    """95 % percentile interval of accuracy of ``first`` minus accuracy of ``second``."""
    return _interval(
        replicates.observed[first] - replicates.observed[second],
        replicates.values[first] - replicates.values[second],
        replicates.n,
    )


def p_value(replicates: Replicates, first: str, second: str) -> float:
    """Two-sided bootstrap p-value of a paired difference.

    Twice the smaller tail, each tail (1 + count) / (R + 1) with count the replicates at or beyond
    zero (Davison and Hinkley 1997, section 4.2); at most 1, never 0.
    """
    values = replicates.values[first] - replicates.values[second]
    tail = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (len(values) + 1))


def differences(
    replicates: Replicates, pairs: Iterable[tuple[str, str]] | None = None
) -> list[Difference]:
    """Compare pairs of methods (default: all) with p-values corrected over the pairs given."""
    chosen = list(combinations(replicates.values, 2) if pairs is None else pairs)
    raw = [p_value(replicates, first, second) for first, second in chosen]
    result = []
    for (first, second), p, corrected in zip(chosen, raw, holm(raw), strict=True):
        difference = difference_interval(replicates, first, second)
        result.append(
            Difference(
                first=first,
                second=second,
                difference=difference,
                p_value=p,
                p_holm=corrected,
                verdict=_verdict(difference.value, corrected),
            )
        )
    return result


def compare_all(
    correct: Mapping[str, ArrayLike],
    *,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> list[Difference]:
    """Compare every pair as the report does.

    There are replicates enough for the number of pairs, and methods with one seed borrow the
    others' spread.
    """
    enough = resamples_for(len(correct))
    drawn = hierarchical_bootstrap(
        correct, groups=groups, resamples=enough, seed=seed, borrow_seeds=True
    )
    return differences(drawn)


def _verdict(difference: float, p_holm: float) -> Literal["first", "second", "no difference found"]:
    if p_holm >= ALPHA or difference == 0:
        return "no difference found"
    return "first" if difference > 0 else "second"


def _checked(correct: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Every array as (S, n) floats; ValueError where shapes or values are no use."""
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


def _cluster_ids(groups: Sequence[str | None] | None, n: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} items")
    known: dict[Any, int] = {}
    keys = ((index,) if group is None else group for index, group in enumerate(groups))
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.intp)


def _skill_masks(skills: Sequence[str | None], n: int) -> tuple[list[str], Floats]:
    """Names of the skills and (K, n) membership."""
    if len(skills) != n:
        raise ValueError(f"{len(skills)} skills for {n} items")
    names = sorted({skill for skill in skills if skill is not None})
    members = [[float(skill == name) for skill in skills] for name in names]
    return names, np.array(members, dtype=np.float64).reshape(len(names), n)


def _bootstrap(
    arrays: Mapping[str, Floats],
    clusters: NDArray[np.intp],
    members: Floats,
    resamples: int,
    rng: np.random.Generator,
    *,
    borrow_seeds: bool,
) -> dict[str, Floats]:
    """Method -> (R, K) replicates of its accuracy within each of K sets of items."""
    table = _tabulate(arrays, clusters, members)
    shifts = {name: _seed_shifts(len(a), resamples, rng) for name, a in arrays.items()}
    means = _redraw_clusters(table, resamples, rng)  # (R, K, T)
    observed = table.sums.sum(axis=2) / table.sizes.sum(axis=1)[:, None]  # (K, T)
    spread = _seed_spread(observed, table) if borrow_seeds else None
    drawn = {}
    for name, rows in table.trainings.items():
        values = means[:, :, rows].mean(axis=2) + shifts[name] @ observed[:, rows].T
        if spread is not None and len(arrays[name]) == 1:
            values += rng.normal(size=(resamples, 1)) * spread
        drawn[name] = np.clip(values, arrays[name].min(), arrays[name].max())
    return drawn


def _tabulate(arrays: Mapping[str, Floats], clusters: NDArray[np.intp], members: Floats) -> _Table:
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    stacked = np.concatenate(list(arrays.values()))[:, order]
    members = members[:, order]
    sums = np.stack([np.add.reduceat(stacked * member, starts, axis=1) for member in members])
    trainings, first = {}, 0
    for name, array in arrays.items():
        trainings[name] = slice(first, first + len(array))
        first += len(array)
    return _Table(sums, np.add.reduceat(members, starts, axis=1), trainings)


def _seed_shifts(seeds: int, resamples: int, rng: np.random.Generator) -> Floats:
    """(R, S) weights that sum to zero: the redrawn seeds about their mean, stretched."""
    if seeds == 1:
        return np.zeros((resamples, 1))
    drawn = rng.multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds
    return (drawn - 1 / seeds) * np.sqrt(seeds / (seeds - 1))


def _seed_spread(observed: Floats, table: _Table) -> Floats | None:
    """(K,) standard deviation between seeds, pooled over the methods that have several."""
    several = [observed[:, rows] for rows in table.trainings.values() if rows.stop - rows.start > 1]
    if not several:
        return None
    squares = sum(((part - part.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for part in several)
    return np.sqrt(squares / sum(part.shape[1] - 1 for part in several))


def _redraw_clusters(table: _Table, resamples: int, rng: np.random.Generator) -> Floats:
    """(R, K, T) accuracy of every training on redrawn clusters; NaN where none was drawn."""
    K, T, G = table.sums.shape
    right = table.sums.reshape(K * T, G).T.copy()
    means = np.empty((resamples, K, T))
    step = max(1, _CHUNK // G)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(G, size=(rows, G)) + np.arange(rows)[:, None] * G
        counts = np.bincount(drawn.ravel(), minlength=rows * G).reshape(rows, G).astype(np.float64)
        sizes = counts @ table.sizes.T  # (rows, K)
        with np.errstate(invalid="ignore"):
            means[start : start + rows] = (counts @ right).reshape(rows, K, T) / sizes[:, :, None]
    return means


def _replicates(
    arrays: Mapping[str, Floats], drawn: Mapping[str, Floats], column: int, mask: NDArray[np.bool_]
) -> Replicates:
    return Replicates(
        observed={name: float(array[:, mask].mean()) for name, array in arrays.items()},
        values={name: values[:, column] for name, values in drawn.items()},
        n=int(mask.sum()),
    )


def _interval(value: float, replicates: Floats, n: int) -> Estimate:
    known = replicates[np.isfinite(replicates)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (value, value)
    return Estimate(value=value, low=float(low), high=float(high), n=n)
