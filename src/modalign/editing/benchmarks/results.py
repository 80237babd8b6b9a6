"""Numbers with their interval, their n and the protocol that made them.

Units are those of the papers: shares times 100, unless a metric's unit says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

RESAMPLES = 2000
_CHUNK = 4_000_000  # elements of the count matrix held at a time

Floats = NDArray[np.float64]
Combine = Callable[[dict[str, Floats]], Floats]

TEACHER_FORCED = "teacher-forced"
FREE = "free generation"


class Metric(BaseModel):
    """A number with its 95 % bootstrap interval over n records.

    Attributes:
        value: in ``unit``.
        low: lower end of the interval.
        high: upper end.
        n: records (for drift: windows of text) it is a mean over.
        protocol: how the model was asked; numbers of different protocols are not comparable.
        unit: ``percent`` (a share times 100), ``percentage points``, ``bits x 100``, ``nats``, ...
    """

    value: float
    low: float
    high: float
    n: int
    protocol: str
    unit: str = "percent"


def harmonic_mean(*values: Floats) -> Floats:
    """Of several numbers of at least 0, elementwise; 0 where one of them is 0."""
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.asarray(len(values) / (1 / stacked).sum(axis=0), dtype=np.float64)


def record_means(columns: Mapping[str, Floats], resamples: int, seed: int) -> dict[str, Floats]:
    """Means over records of several columns, first as observed and then of redrawn records.

    Args:
        columns: name -> (n,), NaN where a record has no such prompts.
        resamples: R, redrawn jointly for all columns (a combination of them stays paired).
        seed: of the redrawing.

    Returns:
        name -> (1 + R,); NaN where no record with a value was drawn.
    """
    n = len(next(iter(columns.values())))
    rng = np.random.default_rng(seed)
    known = {name: ~np.isnan(values) for name, values in columns.items()}
    parts: dict[str, list[Floats]] = {name: [] for name in columns}
    step = max(1, _CHUNK // n)
    for start in range(0, 1 + resamples, step):
        counts = np.ones((min(step, 1 + resamples - start), n))
        for row in range(len(counts)):
            if start + row:  # the first is the sample as it is
                counts[row] = np.bincount(rng.integers(n, size=n), minlength=n)
        with np.errstate(invalid="ignore", divide="ignore"):
            for name, values in columns.items():
                filled = np.where(known[name], values, 0.0)
                parts[name].append((counts @ filled) / (counts @ known[name]))
    return {name: np.concatenate(found) for name, found in parts.items()}


def metric(
    drawn: Floats, n: int, protocol: str, unit: str = "percent", scale: float = 100.0
) -> Metric:
    """A metric from its observed value and its replicates, (1 + R,)."""
    sample = drawn[1:][~np.isnan(drawn[1:])]
    low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) else (drawn[0], drawn[0])
    return Metric(
        value=float(drawn[0]) * scale,
        low=float(low) * scale,
        high=float(high) * scale,
        n=n,
        protocol=protocol,
        unit=unit,
    )


def count_known(values: Floats) -> int:
    """Records that have a value."""
    return int((~np.isnan(values)).sum())


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
