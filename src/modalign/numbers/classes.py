"""Scores of guessed classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from modalign.numbers.bootstrap import Floats, Groups, estimate_of_sums
from modalign.numbers.estimate import Estimate


def macro_f1(
    guessed: ArrayLike,
    right: ArrayLike,
    classes: int,
    *,
    groups: Groups | None = None,
    seed: int = 0,
    over: str = "records",
) -> Estimate:
    """Estimate the mean over classes of F1; a class that is neither there nor guessed counts 0.

    Args:
        guessed, right: (n,) numbers of classes, at least one record.
        classes: how many there are.
        groups: (n,) labels of records resampled together.
        seed: of the bootstrap.
        over: the kind of record.
    """
    said, true = (np.eye(classes)[np.asarray(each)] for each in (guessed, right))
    columns = np.concatenate([said * true, said + true], axis=1)

    def macro(sums: Floats) -> Floats:
        found: Floats = (2 * sums[:, :classes] / np.maximum(sums[:, classes:], 1)).mean(1)
        return found

    found = estimate_of_sums(columns, macro, groups=groups, seed=seed, unit="score", over=over)
    assert found is not None
    return found
