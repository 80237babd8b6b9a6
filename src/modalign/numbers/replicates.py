"""Replicates of figures by source of variance, with Student intervals for each source.

A variance component with few degrees of freedom should widen the interval only by its share. So the 95 %
interval has half-width sqrt(t_s^2 V_s + t_q^2 V_q), V_s coming from trainings and V_q from questions, each t
being Student's quantile for its degrees of freedom (Banerjee 1960, Sankhya 22). For normal means this covers 95
% or more, and exactly 95 % if there is only one component. Intervals of shares are made on the logit scale, so
that they stay within 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from modalign.numbers.bootstrap import TAIL, Floats
from modalign.numbers.estimate import NOT_KNOWN, Estimate
from modalign.numbers.shares import share
from modalign.numbers.spreads import Spread

NORMAL = float(norm.ppf(1 - TAIL))
FEW = 3  # figures that have a variance among each other worth the name


@dataclass(frozen=True)
class Part:
    """One method's components of a figure's replicates.

    Attributes:
        observed: the mean over trainings and questions.
        questions: (R,) deviations by resampled questions.
        luck: (R,) deviations by resampled trainings.
        twice: V_e, the variance contained in both.
        spread: V_s with its degrees of freedom; None if unknown.
        trainings: S; None for figures without a model.
    """

    observed: float
    questions: Floats
    luck: Floats
    twice: float = 0.0
    spread: Spread | None = field(default_factory=Spread)
    trainings: int | None = None


@dataclass(frozen=True)
class Replicates:
    """Replicates of every method's figure on one set of questions, paired across methods.

    Attributes:
        parts: method -> components of its replicates.
        n: questions.
        units: G, resampled groups of questions.
        bounds: the smallest and the largest value of an answer.
        freedom: sum of S - 1 over the methods, the degrees of freedom of all spreads together. A method's spread
            may have more than its own share, but borrowed ones are shared with the others.
        skills: skill -> replicates for the questions of that skill only.
    """

    parts: dict[str, Part]
    n: int
    units: int
    bounds: tuple[float, float] = (-np.inf, np.inf)
    freedom: float = np.inf
    skills: dict[str, Replicates] = field(default_factory=dict)

    @property
    def observed(self) -> dict[str, float]:
        """Return method -> figure."""
        return {name: part.observed for name, part in self.parts.items()}

    @property
    def values(self) -> dict[str, Floats]:
        """Return method -> (R,) replicates of its figure."""
        return {name: self.of(name).values for name in self.parts}

    @property
    def again(self) -> dict[str, Floats]:
        """Return method -> (R,) figures that another comparison of the same size might find.

        Both comparisons have sampling error, so deviations count twice. The spread between trainings has few
        degrees of freedom, so deviations between trainings have Student's tails. And who leads does so partly by
        luck: the figures of the better half regress towards their mean by e^2 / (T^2 + e^2), T^2 being their
        variance among each other and e^2 a figure's error (empirical Bayes: Efron and Morris 1975, J. Am. Stat.
        Assoc. 70). Where the error is large, the other comparison's own is then the only one left.
        """
        rng = np.random.default_rng(self.n)
        leaders, middle, apart = self._leaders()
        shared = np.mean([self.parts[name].questions for name in leaders], axis=0)
        found = {}
        for name, part in self.parts.items():
            drawn = self.of(name)
            tails = np.ones(1)
            if part.spread is not None and part.spread.variance:
                freedom = part.spread.freedom
                tails = np.sqrt(freedom / rng.chisquare(freedom, len(part.luck)))
            deviations = drawn.replicates - drawn.value + (tails - 1) * part.luck
            kept = np.ones(1)
            if name in leaders:
                error = float(np.nanvar(part.questions - shared)) * np.ones_like(tails)
                if part.spread is not None:
                    error += tails**2 * part.spread.variance
                kept = np.divide(
                    apart, apart + error, out=np.ones_like(tails), where=apart < np.inf
                )
            regressed = middle + kept * (drawn.value - middle)
            found[name] = np.clip(regressed + np.sqrt(1 + kept) * deviations, *self.bounds)
        return found

    def _leaders(self) -> tuple[list[str], float, float]:
        """Return the better half, three methods at least, with mean and variance; infinite if there are fewer."""
        ranked = sorted(self.parts, key=lambda name: -self.parts[name].observed)
        leaders = ranked[: max(FEW, -(-len(ranked) // 2))]
        figures = [self.parts[name].observed for name in leaders]
        if len(leaders) < FEW:
            return leaders, 0.0, np.inf
        return leaders, float(np.mean(figures)), max(float(np.var(figures, ddof=1)), 1e-12)

    def of(self, first: str, second: str | None = None) -> Redrawn:
        """Return the replicates of a method's figure, or of the difference of two."""
        one = self.parts[first]
        other = self.parts[second] if second is not None else _NOTHING
        questions = one.questions - other.questions
        variance = float(np.nanvar(questions)) if np.isfinite(questions).any() else 0.0
        left = max(0.0, 1 - (one.twice + other.twice) / variance) if variance else 0.0
        known = [each.spread for each in (one, other) if each.spread is not None]
        spreads = [spread for spread in known if spread.variance]
        reach = self.bounds[1] - self.bounds[0]
        value = one.observed - other.observed
        return Redrawn(
            value,
            value + np.sqrt(left) * questions + one.luck - other.luck,
            questions=Spread(left * variance, max(self.units - 1, 1)),
            trainings=self._together(spreads) if len(known) == 2 else None,
            bounds=self.bounds if second is None else (-reach, reach),
        )

    def reaches(self, found: Redrawn, *methods: str) -> dict[str, float | None]:
        """Return the half-widths by questions and by trainings, if any of the methods is trained."""
        if all(self.parts[name].trainings is None for name in methods):
            return {}
        return {"by_questions": found.by_questions, "by_trainings": found.by_trainings}

    def _together(self, spreads: Sequence[Spread]) -> Spread:
        freedom = satterthwaite(spreads)
        if len(spreads) > 1:
            freedom = max(min(freedom, self.freedom), min(each.freedom for each in spreads))
        return Spread(sum(each.variance for each in spreads), freedom)

    def estimate(self, method: str, *, over: str = "questions", unit: str = "share") -> Estimate:
        """Estimate one method's figure."""
        found = self.of(method)
        is_share = unit == "share" and self.bounds == (0.0, 1.0)
        low, high = found.ends(logistic=is_share)
        if is_share and found.value in self.bounds:
            alike = share([found.value] * self.units)  # resampling equal values gives no spread
            low, high = alike.low, alike.high
        return Estimate(
            value=found.value,
            low=low,
            high=high,
            n=self.n,
            over=over,
            trainings=self.parts[method].trainings,
            **self.reaches(found, method),
            interval="hierarchical bootstrap",
            unit=unit,
        )


@dataclass(frozen=True)
class Redrawn:
    """A figure with its replicates, (R,), and the sources of their variance."""

    value: float
    replicates: Floats
    questions: Spread
    trainings: Spread | None
    bounds: tuple[float, float]

    @property
    def values(self) -> Floats:
        """The replicates, within the bounds."""
        return np.clip(self.replicates, *self.bounds)

    @property
    def by_questions(self) -> float:
        """The half-width of the 95 % interval if only questions were resampled."""
        return self.questions.reach

    @property
    def by_trainings(self) -> float | None:
        """The same for trainings only; None if their spread is unknown."""
        return None if self.trainings is None else self.trainings.reach

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the Student distribution with the half-width of both parts together."""
        parts = [part for part in (self.questions, self.trainings) if part and part.variance]
        total = sum(part.variance for part in parts)
        if not total:
            return 1.0
        return freedom_of(float(np.sqrt(sum(part.reach**2 for part in parts) / total)))

    def ends(self, logistic: bool = False) -> tuple[float, float]:
        """Ends of the 95 % interval.

        Percentiles whose deviations from the value are stretched from the normal to Student's distribution;
        ``logistic`` computes them on the logit scale.
        """
        known = self.replicates[np.isfinite(self.replicates)]
        if not len(known):
            return NOT_KNOWN, NOT_KNOWN
        stretch = float(student.ppf(1 - TAIL, self.freedom)) / NORMAL
        low, high = stretch * (np.quantile(known, [TAIL, 1 - TAIL]) - self.value)
        if logistic and 0 < self.value < 1:
            return on_logit_scale(self.value, float(low), float(high))
        low, high = np.clip([self.value + low, self.value + high], *self.bounds)
        return float(low), float(high)


_NOTHING = Part(0.0, np.zeros(1), np.zeros(1))


def freedom_of(reach: float) -> float:
    """Return the degrees of freedom, 0.5 to a million, of the Student distribution with this 97.5 % quantile."""
    least, most = 0.5, 1e6
    if reach <= student.ppf(1 - TAIL, most):
        return most
    if reach >= student.ppf(1 - TAIL, least):
        return least
    return float(brentq(lambda freedom: student.ppf(1 - TAIL, freedom) - reach, least, most))


def satterthwaite(parts: Sequence[Spread]) -> float:
    """Return the degrees of freedom of a sum of independent variances (Satterthwaite 1946)."""
    doubt = sum(part.variance**2 / part.freedom for part in parts)
    return sum(part.variance for part in parts) ** 2 / doubt if doubt else 1.0


def on_logit_scale(value: float, low: float, high: float) -> tuple[float, float]:
    """Return the ends of a share's interval from its deviations below and above, by the delta method on logits."""
    slope = value * (1 - value)
    return float(expit(logit(value) + low / slope)), float(expit(logit(value) + high / slope))
