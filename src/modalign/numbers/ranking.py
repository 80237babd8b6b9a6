"""How well scores rank what is right, and separate two kinds of records."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from scipy.stats import t as student

from modalign.numbers.bootstrap import Floats, estimate
from modalign.numbers.estimate import Estimate

REPLICATES = 500
EXACT = 8  # items whose orders are all counted


def among_first(scores: Floats, right: ArrayLike, k: int) -> Floats:
    """Return (n,) chances that the right one is among the first k, equal scores coming in any order.

    Args:
        scores: (n, m).
        right: (n,) places of the right ones.
        k: how many are looked at.
    """
    own = np.take_along_axis(scores, np.asarray(right)[:, None], axis=1)
    above, equal = (scores > own).sum(1), (scores == own).sum(1)
    found: Floats = np.clip((k - above) / equal, 0, 1)
    return found


def auroc(positive: ArrayLike, negative: ArrayLike, *, seed: int = 0) -> Estimate:
    """Estimate the probability that a positive record scores above a negative one; ties count half.

    The interval resamples both kinds. Chance is one half.

    Args:
        positive: (p,) scores, at least one.
        negative: (q,) scores, at least one.
        seed: of the random generator.
    """
    above, below = (np.asarray(each, dtype=np.float64) for each in (positive, negative))
    rng = np.random.default_rng(seed)
    drawn = [_area(above, below)]
    for _ in range(REPLICATES):
        drawn.append(_area(rng.choice(above, len(above)), rng.choice(below, len(below))))
    n, units = len(above) + len(below), min(len(above), len(below))
    return estimate(np.array(drawn), n, units=units, interval="bootstrap", unit="score", chance=0.5)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> Estimate | None:
    """Estimate Spearman's correlation of two rankings of the same items, as for other items of the kind.

    The interval is Fisher's z with the standard error sqrt((1 + r^2 / 2) / (n - 3)) of Bonett and Wright (2000,
    Psychometrika 65); of a perfect ranking it starts from half the smallest step below one. ``p`` is the exact
    share of orders that correlate at least so much, up to eight items; above by Student's distribution.

    Args:
        first, second: (n,) figures of the items.

    Returns:
        None if there are fewer than four items, or all of one ranking are equal.
    """
    a, b = (rankdata(np.asarray(each, dtype=np.float64)) for each in (first, second))
    n = len(a)
    if n < 4 or not np.ptp(a) or not np.ptp(b):
        return None
    value = float(np.corrcoef(a, b)[0, 1])
    inside = float(np.clip(value, 3 / (n**3 - n) - 1, 1 - 3 / (n**3 - n)))
    reach = 1.959964 * np.sqrt((1 + inside**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(inside) + np.array([-reach, reach]))
    if n <= EXACT:
        orders = np.array(list(permutations(range(n))))
        centred = (a - a.mean())[None] * (b - b.mean())[orders]
        p = float(np.mean(centred.sum(1) >= ((a - a.mean()) * (b - b.mean())).sum() - 1e-9))
    else:
        reached = value * np.sqrt((n - 2) / max(1 - value**2, 1e-12))
        p = float(student.sf(reached, n - 2))
    return Estimate(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=n,
        over="items",
        interval="fisher",
        unit="score",
        chance=0.0,
        p=p,
    )


def _area(above: Floats, below: Floats) -> float:
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]  # Mann and Whitney 1947
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def threshold_between(above: ArrayLike, below: ArrayLike) -> float:
    """Return the score from which on a record is taken for one of ``above``: best balanced accuracy.

    Args:
        above: (p,) scores of records that should pass.
        below: (q,) scores of records that should not.
    """
    passing, failing = (np.sort(np.asarray(each, dtype=np.float64)) for each in (above, below))
    values = np.unique(np.concatenate([passing, failing]))
    kept = 1 - np.searchsorted(passing, values) / len(passing)
    refused = np.searchsorted(failing, values) / len(failing)
    return float(values[int(np.argmax(kept + refused))])
