"""How well scores rank what is right, and separate two kinds of records."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from modalign.numbers.bootstrap import Floats, estimate
from modalign.numbers.estimate import Estimate

REPLICATES = 500


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
