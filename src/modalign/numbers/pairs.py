"""Paired differences: one test, one correction, one verdict.

Both methods answered the same questions, so differences are paired within each replicate. The two-sided
p-value is twice the smaller tail of the replicates beyond zero, each tail (1 + count) / (R + 1) (Davison and
Hinkley 1997, section 4.2), and never below 2^(1 - G), the smallest that changing the signs of G independent
differences could give: otherwise two agreeing records would be conclusive in a bootstrap. P-values of one family
are corrected for their number (Holm 1979).

**Verdict**: a difference is found if the corrected p-value is below 5 % *and* the 95 % interval excludes
zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from modalign.numbers.bootstrap import RESAMPLES, Floats, Groups
from modalign.numbers.estimate import Estimate
from modalign.numbers.replicates import Part, Replicates
from modalign.numbers.trainings import hierarchical_bootstrap

ALPHA = 0.05
NO_DIFFERENCE: Literal["no difference found"] = "no difference found"
Verdict = Literal["first", "second", "no difference found"]


class Difference(BaseModel):
    """Two methods on the same questions.

    Attributes:
        first, second: the methods.
        difference: the first one's figure minus the second one's.
        p_value: two-sided.
        p_holm: corrected for the number of pairs tested.
        verdict: the better method, or ``no difference found``.
    """

    model_config = ConfigDict(extra="forbid")

    first: str
    second: str
    difference: Estimate
    p_value: float
    p_holm: float
    verdict: Verdict


def resamples_for(methods: int) -> int:
    """Return enough replicates for Holm's smallest step among all pairs of ``methods``.

    The smallest p-value of R replicates is 2 / (R + 1). Multiplied by the number of pairs it must be well below
    5 % (here 1 %), or no difference could ever be found.
    """
    pairs = methods * (methods - 1) // 2
    return max(RESAMPLES, 200 * pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979), keeping their order.

    The smallest is multiplied by m, the next by m - 1 and so on; a later one is never smaller than
    an earlier one, and none exceeds 1.
    """
    m = len(p_values)
    adjusted = [1.0] * m
    running = 0.0
    for step, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - step) * p_values[index]))
        adjusted[index] = running
    return adjusted


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of two paired shares by their discordant pairs (McNemar 1947).

    Args:
        only_first, only_second: items that only one of the two has right.
    """
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def verdict(difference: Estimate, p_holm: float) -> Verdict:
    """Return which of two is better by the rule above."""
    if p_holm >= ALPHA or difference.sign == 0:
        return NO_DIFFERENCE
    return "first" if difference.sign > 0 else "second"


def difference_estimate(
    drawn: Replicates,
    first: str,
    second: str,
    *,
    over: str = "questions",
    unit: str = "difference of shares",
) -> Estimate:
    """Estimate the figure of ``first`` minus that of ``second``."""
    found = drawn.of(first, second)
    low, high = found.ends()
    counts = [drawn.parts[name].trainings for name in (first, second)]
    known = [count for count in counts if count is not None]
    return Estimate(
        value=found.value,
        low=low,
        high=high,
        n=drawn.n,
        over=over,
        trainings=min(known, default=None),
        **drawn.reaches(found, first, second),
        interval="hierarchical bootstrap" if known else "bootstrap",
        unit=unit,
    )


def p_value(drawn: Replicates, first: str, second: str) -> float:
    """Test a paired difference; two-sided.

    If the spread has few degrees of freedom, zero is replaced by the point beyond which Student's distribution
    has as much probability as the normal replicates have beyond theirs.
    """
    found = drawn.of(first, second)
    known = found.replicates[np.isfinite(found.replicates)]
    error = float(known.std()) if len(known) else 0.0
    if error and found.value:
        reach = abs(found.value) / error
        nearer = float(norm.isf(student.sf(reach, found.freedom)))
        known = found.value + (known - found.value) * reach / max(nearer, 1e-9)
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, max(2 * (1 + tail) / (len(known) + 1), 2.0 ** (1 - drawn.units)))


def differences(
    drawn: Replicates,
    pairs: Iterable[tuple[str, str]] | None = None,
    *,
    over: str = "questions",
    unit: str = "difference of shares",
) -> list[Difference]:
    """Compare pairs of methods (default: all) with p-values corrected over the pairs given."""
    chosen = list(combinations(drawn.parts, 2) if pairs is None else pairs)
    raw = [p_value(drawn, first, second) for first, second in chosen]
    found = []
    for (first, second), p, corrected in zip(chosen, raw, holm(raw), strict=True):
        difference = difference_estimate(drawn, first, second, over=over, unit=unit)
        found.append(
            Difference(
                first=first,
                second=second,
                difference=difference,
                p_value=p,
                p_holm=corrected,
                verdict=verdict(difference, corrected),
            )
        )
    return found


def compare_all(
    correct: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    fixed: Collection[str] = (),
) -> list[Difference]:
    """Compare every pair of methods that answered the same questions.

    The number of replicates suits the number of pairs.

    Args:
        correct: method -> (S, n); none or one method has no pairs.
        groups: (n,) labels of questions resampled together.
        seed: of the random generator.
        fixed: methods without training.
    """
    if len(correct) < 2:
        return []
    enough = resamples_for(len(correct))
    return differences(
        hierarchical_bootstrap(correct, groups=groups, resamples=enough, seed=seed, fixed=fixed)
    )


def compare_with(
    reference: str,
    answers: Floats,
    correct: Mapping[str, ArrayLike],
    *,
    groups: Groups | None = None,
    seed: int = 0,
    fixed: Collection[str] = (),
) -> list[Difference]:
    """Compare every method with an untrained reference row.

    Args:
        reference: its name.
        answers: (n,) its correct answers.
        correct: method -> (S, n).
        groups: (n,) labels of questions resampled together.
        seed: of the random generator.
        fixed: methods without training.
    """
    gains = {name: np.asarray(values, dtype=float) - answers for name, values in correct.items()}
    enough = resamples_for(len(gains) + 1)
    drawn = hierarchical_bootstrap(gains, groups=groups, resamples=enough, seed=seed, fixed=fixed)
    drawn.parts[reference] = Part(0.0, np.zeros(enough), np.zeros(enough))
    low, high = drawn.bounds
    drawn = replace(
        drawn, bounds=(min(low, 0.0), max(high, 0.0))
    )  # where the reference's gain lies, too
    return differences(drawn, [(name, reference) for name in gains])


def sample_replicates(drawn: Mapping[str, Floats], n: int) -> Replicates:
    """Create replicates from the values and replicates, (1 + R,) each, of figures of one sample of n units."""
    widened = np.sqrt(n / (n - 1)) if n > 1 else 1.0
    parts = {
        name: Part(float(values[0]), widened * (values[1:] - values[0]), np.zeros(len(values) - 1))
        for name, values in drawn.items()
    }
    return Replicates(parts, n, n)
