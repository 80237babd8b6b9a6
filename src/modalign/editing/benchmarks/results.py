"""What the editing benchmarks share: protocols, the harmonic mean, and estimates in percent.

Units are those of the papers: shares times 100, unless an estimate's unit says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from modalign.numbers.bootstrap import Floats, estimate
from modalign.numbers.estimate import Estimate

TEACHER_FORCED = "teacher-forced"
FREE = "free generation"


def harmonic_mean(*values: Floats) -> Floats:
    """Return the elementwise harmonic mean of nonnegative numbers; 0 where one of them is 0."""
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return np.asarray(len(values) / (1 / stacked).sum(axis=0), dtype=np.float64)


def metric(
    drawn: Floats, n: int, protocol: str, unit: str = "percent", scale: float = 100.0
) -> Estimate:
    """Estimate a benchmark's figure from its observed value and its replicates, (1 + R,)."""
    return estimate(drawn, n, scale=scale, unit=unit, protocol=protocol, over="records")


def count_known(values: Floats) -> int:
    """Count the records that have a value."""
    return int((~np.isnan(values)).sum())


def mean_or_nan(values: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(np.mean(values)) if len(values) else float("nan")


def means_of_records(
    values: Iterable[tuple[int, str, float]], records: int, names: Sequence[str]
) -> dict[str, Floats]:
    """Average (record, metric, value) per record: metric -> (records,), NaN where a record has no value."""
    cells: dict[str, list[list[float]]] = {name: [[] for _ in range(records)] for name in names}
    for record, name, value in values:
        cells[name][record].append(value)
    return {name: np.array([mean_or_nan(row) for row in rows]) for name, rows in cells.items()}
