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

V_s comes from S - 1 degrees of freedom, the rest from G - 1. :meth:`Spread.stretched` gives intervals and tests
the tails of Student's distribution with the degrees of freedom of Welch (1947) and Satterthwaite (1946); the
replicates themselves keep the variance above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student

from modalign.numbers.bootstrap import RESAMPLES, TAIL, Floats, Groups, cluster_sums, redraw
from modalign.numbers.estimate import NOT_KNOWN, Estimate

Lending = Literal["own", "lent"]


@dataclass(frozen=True)
class Spread:
    """The variance that another training gives to a mean over trainings, and how well it is known."""

    variance: float = 0.0
    freedom: float = 1.0


NO_SPREAD = Spread()


@dataclass(frozen=True)
class Replicates:
    """Replicates of every method's figure on one set of questions, paired across methods.

    Attributes:
        observed: method -> figure, the mean over trainings and questions.
        values: method -> (R,) the figures of the replicates.
        n: questions.
        units: G, groups of questions that were redrawn.
        trainings: method -> S; without an entry the model is given.
        spreads: method -> what of the replicates' variance comes from trainings.
        bounds: the smallest and largest figure there can be.
        skills: skill -> the same for the questions of that skill alone.
    """

    observed: dict[str, float]
    values: dict[str, Floats]
    n: int
    units: int
    trainings: dict[str, int] = field(default_factory=dict)
    spreads: dict[str, Spread] = field(default_factory=dict)
    bounds: tuple[float, float] = (-np.inf, np.inf)
    skills: dict[str, Replicates] = field(default_factory=dict)

    def estimate(self, method: str, *, over: str = "questions", unit: str = "share") -> Estimate:
        """Estimate one method's figure."""
        value = self.observed[method]
        low, high = student_ends(value, self.values[method], self.freedom(method))
        return Estimate(
            value=value,
            low=float(np.clip(low, *self.bounds)),
            high=float(np.clip(high, *self.bounds)),
            n=self.n,
            over=over,
            trainings=self.trainings.get(method),
            interval="hierarchical bootstrap",
            unit=unit,
        )

    def freedom(self, *methods: str) -> float:
        """Degrees of freedom of a method's replicates, or of a difference of two methods'."""
        values = self.values[methods[0]]
        if len(methods) > 1:
            values = values - self.values[methods[1]]
        whole = float(np.nanvar(values)) if np.isfinite(values).any() else 0.0
        parts = [spread for name in methods if (spread := self.spreads.get(name)) is not None]
        questions = Spread(
            max(whole - sum(part.variance for part in parts), 0.0), max(self.units - 1, 1)
        )
        return satterthwaite([*parts, questions])


def satterthwaite(parts: Sequence[Spread]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite 1946)."""
    total = sum(part.variance for part in parts)
    doubt = sum(part.variance**2 / part.freedom for part in parts)
    return total**2 / doubt if doubt > 0 else 1.0


def student_ends(value: float, replicates: Floats, freedom: float) -> tuple[float, float]:
    """Ends of the 95 % interval of replicates whose spread is known to some degrees of freedom only.

    Percentiles, their deviations from the value stretched as Student's distribution is against the normal one.
    """
    known = replicates[np.isfinite(replicates)]
    if not len(known):
        return NOT_KNOWN, NOT_KNOWN
    stretch = float(student.ppf(1 - TAIL, freedom) / norm.ppf(1 - TAIL))
    low, high = (float(end) for end in np.quantile(known, [TAIL, 1 - TAIL]))
    return value + stretch * (low - value), value + stretch * (high - value)


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
    """Estimate the sum of ``above`` over the sum of ``below``, both (S, n); None where that is zero.

    By linearisation (Woodruff 1971, J. Am. Stat. Assoc. 66): a question's part in r = sum(a) / sum(b) is
    r + (a - r b) / mean(b), whose mean is r. ``n`` counts the questions below, the mean over trainings.
    """
    a, b = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (above, below))
    mean = float(b.mean())
    if not mean:
        return None
    value = float(a.mean()) / mean
    found = estimate_mean(value + (a - value * b) / mean, groups=groups)
    ends = {"low": max(0.0, found.low), "high": min(1.0, found.high)}
    n = round(float((b > 0).sum(axis=1).mean()))
    return found.model_copy(update={"value": value, "n": n, **ends})


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
    rng = np.random.default_rng((seed, 1))
    luck = rng.normal(size=(len(arrays), resamples))  # of the trainings, one draw for all sets
    found = []
    for k in range(K):
        spreads = _spreads(table, k, spread)
        inside = members[k] > 0
        bounds = [(a[:, inside].min(), a[:, inside].max()) for a in arrays.values()]
        observed, values = {}, {}
        for place, (name, rows) in enumerate(table.rows.items()):
            value = float(arrays[name][:, inside].mean())
            shift = redrawn[:, k, rows].mean(axis=1) - value
            own = value + _shrunk(table, k, rows) * shift
            own += luck[place] * np.sqrt(spreads[name].variance)
            observed[name], values[name] = value, np.clip(own, *bounds[place])
        found.append(
            Replicates(
                observed,
                values,
                n=int(inside.sum()),
                units=int(table.units[k]),
                trainings={name: len(array) for name, array in arrays.items()},
                spreads=spreads,
                bounds=(float(min(b[0] for b in bounds)), float(max(b[1] for b in bounds))),
            )
        )
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


def _shrunk(table: _Table, k: int, rows: slice) -> float:
    """What a deviation by redrawn questions is multiplied by: sqrt(G / (G - 1) (1 - V_e / V_q))."""
    units, trainings = int(table.units[k]), rows.stop - rows.start
    if units < 2:
        return 1.0
    widened = units / (units - 1)
    if trainings == 1:
        return float(np.sqrt(widened))
    parts = table.sums[:, k, rows] - table.means[k, rows] * table.sizes[:, k, None]  # (G, S)
    common = parts.mean(axis=1)
    alone = parts - common[:, None]
    questions = float((common**2).sum())
    together = float((alone**2).sum()) / ((trainings - 1) * trainings)
    return float(np.sqrt(widened * max(0.0, 1 - together / questions))) if questions else 0.0


def _spreads(table: _Table, k: int, spread: Lending) -> dict[str, Spread]:
    """Every method's spread between trainings; this is the place for a spread shared between methods."""
    found = dict.fromkeys(table.rows, NO_SPREAD)
    squares, freedom = 0.0, 0
    for name, rows in table.rows.items():
        means = table.means[k, rows]
        if len(means) > 1:
            found[name] = Spread(float(means.var(ddof=1)) / len(means), len(means) - 1)
            squares += float(means.var(ddof=1)) * (len(means) - 1)
            freedom += len(means) - 1
    if spread == "lent" and freedom:
        lent = Spread(squares / freedom, freedom)
        found |= {name: lent for name, rows in table.rows.items() if rows.stop - rows.start == 1}
    return found
