"""The spread between trainings, estimated jointly over methods that were each trained only a few times.

Two trainings hardly show how much trainings of a method vary: Student's interval with one degree of freedom is
12.7 standard errors long on each side. But other methods were trained on the same data. With s_m^2 the
variance between the S_m trainings of method m, d_m = S_m - 1, and sigma_m^2 the true variance
(Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, art. 3; known as moderated t)::

    s_m^2 | sigma_m^2  ~  sigma_m^2 chi2(d_m) / d_m
    1 / sigma_m^2      ~  chi2(d_0) / (d_0 s_0^2)

s_0 is the typical spread, and d_0 says how similar the methods' spreads are: nine tenths of them lie within a
factor of 30 with d_0 = 1, of 8 with d_0 = 2, of 2.4 with d_0 = 8. Both are estimated from the methods at hand. The
prior is uniform over log s_0 and over the d_0 of ``ALIKE``, which takes spreads to differ much; each pair is
weighted by the likelihood of the observed variances (a product of F densities). Given a pair, the mean of S_m
trainings follows Student's distribution with d_0 + d_m degrees of freedom and the variance::

    (d_0 s_0^2 + d_m s_m^2) / (d_0 + d_m) / S_m

The mixture over pairs is summarised by the Student distribution with the same 84.1 and 97.5 % quantiles. A single
method gets the ordinary Student interval of its trainings; more, and more similar, methods make it shorter.

**Never below its own spread**: the variance is at least s_m^2. A method borrows degrees of freedom from the
others, and a larger spread, but never a smaller one.

If no method was trained twice, the spread is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, stdtr, stdtrit
from scipy.stats import f as fisher

from modalign.numbers.bootstrap import TAIL, Floats

# d_0. Larger values are excluded: a dozen spreads from two trainings each cannot show that spreads are alike, and
# where they are not, the intervals of the methods with the largest would be too short (bench/coverage.py: with
# spreads tenfold apart, those of the widest method held the truth in 82 % with 8 among them, in 88 % so).
ALIKE = (0.5, 1.0)
_SCALES = np.linspace(-15, 15, 121)  # log s_0^2 around the middle of the observed ones
_QUANTILES = (0.8413, 1 - TAIL)
_FREEDOMS = np.geomspace(0.5, 1e5, 400)
_RATIOS = stdtrit(_FREEDOMS, _QUANTILES[1]) / stdtrit(_FREEDOMS, _QUANTILES[0])  # falling
_NEGLIGIBLE = 1e-4  # weight of a pair, as a share of the largest


@dataclass(frozen=True)
class Spread:
    """A variance with its degrees of freedom."""

    variance: float = 0.0
    freedom: float = 1.0

    @property
    def reach(self) -> float:
        """The half-width of the 95 % interval with this variance."""
        return float(stdtrit(self.freedom, 1 - TAIL) * np.sqrt(self.variance))

    def over(self, count: int) -> Spread:
        """Return the spread of the mean of ``count`` values."""
        return Spread(self.variance / count, self.freedom)


def shared_spreads(variances: ArrayLike, trainings: Sequence[int]) -> list[Spread] | None:
    """Estimate every method's variance between trainings by the model above.

    Args:
        variances: s_m^2, of one training; ignored for methods with one training.
        trainings: S_m.

    Returns:
        The variance of *one* training of each method with its degrees of freedom; None if no two
        trainings of a method differ.
    """
    freedom = np.asarray(trainings, dtype=np.float64) - 1
    own = np.where(freedom > 0, np.asarray(variances, dtype=np.float64), 0.0)
    seen = own > 0
    if not seen.any():
        return None
    # Trainings that agree on every question get a tiny variance, not zero.
    floor = 1e-4 * float(np.median(own[seen]))
    own = np.where(freedom > 0, np.maximum(own, floor), 0.0)
    weights, alike, usual = _pairs(own[freedom > 0], freedom[freedom > 0])
    total = alike[:, None] + freedom
    scale = np.sqrt((alike[:, None] * usual[:, None] + freedom * own) / total)
    near, far = (_quantile(level, weights, total, scale) for level in _QUANTILES)
    found = np.interp(-far / near, -_RATIOS, _FREEDOMS)
    variance = np.maximum((far / stdtrit(found, _QUANTILES[1])) ** 2, own)
    return [Spread(float(v), float(d)) for v, d in zip(variance, found, strict=True)]


def _pairs(own: Floats, freedom: Floats) -> tuple[Floats, Floats, Floats]:
    """Return weights, d_0 and s_0^2 of the pairs with non-negligible weight, (K,) each."""
    centre = np.log(own).mean()
    alike, usual = (
        each.ravel() for each in np.meshgrid(ALIKE, np.exp(centre + _SCALES), indexing="ij")
    )
    seen = fisher.logpdf(own / usual[:, None], freedom, alike[:, None]) - np.log(usual)[:, None]
    likelihood = seen.sum(axis=1)
    weights = np.exp(likelihood - likelihood.max())
    kept = weights > _NEGLIGIBLE
    return weights[kept] / weights[kept].sum(), alike[kept], usual[kept]


def _quantile(level: float, weights: Floats, freedom: Floats, scale: Floats) -> Floats:
    """Return (M,) quantiles of mixtures of Student's distributions, (K, M), by Newton's steps in logarithms."""
    ends = np.log(scale * stdtrit(freedom, level))
    low, high, at = ends.min(axis=0), ends.max(axis=0), weights @ ends
    height = np.exp(gammaln((freedom + 1) / 2) - gammaln(freedom / 2)) / np.sqrt(np.pi * freedom)
    for _ in range(60):
        reach = np.exp(at) / scale
        missing = level - weights @ stdtr(freedom, reach)
        low, high = np.where(missing > 0, at, low), np.where(missing > 0, high, at)
        density = height * (1 + reach**2 / freedom) ** (-(freedom + 1) / 2)
        after = at + missing / (weights @ (density * reach))
        after = np.where((after < low) | (after > high), (low + high) / 2, after)
        moved, at = float(abs(after - at).max()), after
        if moved < 1e-5:
            break
    return np.exp(at)
