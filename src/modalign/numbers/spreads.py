"""The spread between trainings of methods that were trained few times, from the trainings of all methods.

Two trainings hardly show how far apart a method's trainings lie: Student's interval of one degree of freedom
is 12.7 standard errors long on each side. But there are other methods, trained on the same data. With s_m^2 the
variance between the S_m trainings of method m, d_m = S_m - 1, and sigma_m^2 the variance that many trainings would
show (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, art. 3; in other fields called moderated t)::

    s_m^2 | sigma_m^2  ~  sigma_m^2 chi2(d_m) / d_m
    1 / sigma_m^2      ~  chi2(d_0) / (d_0 s_0^2)

s_0 is the spread usual here, d_0 says how alike the methods' spreads are: nine tenths of them lie within a
factor of 30 with d_0 = 1, of 8 with d_0 = 2, of 2.4 with d_0 = 8. Both come from the methods at hand. Before
these are seen every log s_0 is as likely as another, and so is every d_0 of ``ALIKE``; afterwards each pair has
the weight with which it foretells the variances seen (a product of F densities). Given a pair, the mean of S_m
trainings has Student's distribution with d_0 + d_m degrees of freedom and the variance::

    (d_0 s_0^2 + d_m s_m^2) / (d_0 + d_m) / S_m

The mixture over pairs is told as the Student's distribution with the same 84.1 and 97.5 % quantiles. One method
alone has Student's interval of its own trainings; the more methods there are, and the more alike, the shorter.

**Never less than its own trainings show**: the variance is at least s_m^2. What a method shares with the others
are degrees of freedom, and a larger spread, never a smaller one.

Where no method was trained twice nothing is known of spreads, and nothing is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, stdtr, stdtrit
from scipy.stats import f as fisher

from modalign.numbers.bootstrap import TAIL, Floats

# d_0. None is large, lest the spreads of a few methods, alike by chance, pass for all alike: where they lie
# tenfold apart, that would be paid by the methods with the largest.
ALIKE = (0.5, 1.0, 2.0, 4.0, 8.0)
_SCALES = np.linspace(-15, 15, 121)  # log s_0^2 about the middle of what is seen
_QUANTILES = (0.8413, 1 - TAIL)
_FREEDOMS = np.geomspace(0.5, 1e5, 400)
_RATIOS = stdtrit(_FREEDOMS, _QUANTILES[1]) / stdtrit(_FREEDOMS, _QUANTILES[0])  # falling
_NEGLIGIBLE = 1e-4  # weight of a pair, as a share of the largest


@dataclass(frozen=True)
class Spread:
    """A variance and the degrees of freedom to which it is known."""

    variance: float = 0.0
    freedom: float = 1.0

    @property
    def reach(self) -> float:
        """Half the length of the 95 % interval of what has this variance."""
        return float(stdtrit(self.freedom, 1 - TAIL) * np.sqrt(self.variance))

    def over(self, count: int) -> Spread:
        """Of the mean of so many."""
        return Spread(self.variance / count, self.freedom)


def shared_spreads(variances: ArrayLike, trainings: Sequence[int]) -> list[Spread] | None:
    """Find the variance between trainings of every method, by the model above.

    Args:
        variances: s_m^2, of one training; whatever it says is ignored where there is one training.
        trainings: S_m.

    Returns:
        the variance of *one* training of each method with its degrees of freedom; None where no two
        trainings of a method differ.
    """
    freedom = np.asarray(trainings, dtype=np.float64) - 1
    own = np.where(freedom > 0, np.asarray(variances, dtype=np.float64), 0.0)
    seen = own > 0
    if not seen.any():
        return None
    # Trainings that agree to the last question still differ: next to nothing, not nothing.
    floor = 1e-4 * float(own[seen].mean())
    own = np.where(freedom > 0, np.maximum(own, floor), 0.0)
    weights, alike, usual = _pairs(own[freedom > 0], freedom[freedom > 0])
    total = alike[:, None] + freedom
    scale = np.sqrt((alike[:, None] * usual[:, None] + freedom * own) / total)
    near, far = (_quantile(level, weights, total, scale) for level in _QUANTILES)
    found = np.interp(-far / near, -_RATIOS, _FREEDOMS)
    variance = np.maximum((far / stdtrit(found, _QUANTILES[1])) ** 2, own)
    return [Spread(float(v), float(d)) for v, d in zip(variance, found, strict=True)]


def _pairs(own: Floats, freedom: Floats) -> tuple[Floats, Floats, Floats]:
    """Weights of pairs, their d_0 and their s_0^2, (K,) each; those without weight left out."""
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
    """(M,) quantile of mixtures of Student's distributions, (K, M), by Newton's steps in logarithms."""
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
