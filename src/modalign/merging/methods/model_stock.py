"""Model stock: the mean, drawn towards the base as far as the parents disagree (arXiv 2403.19522)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor

from modalign.merging.deltas import Block, Deltas
from modalign.merging.registry import merge_method
from modalign.merging.sums import mean

SINGULAR = 1e-6  # of the denominator


@merge_method("model_stock", default="shares")
def model_stock(deltas: Deltas, weights: Mapping[str, float]) -> Iterator[Tensor]:
    """t times the mean difference, t = N c / (1 + (N - 1) c), c the mean cosine of two differences.

    For more than two parents the mean over pairs is a guess: the paper assumes all angles equal. Opposite
    differences, for which there is no t, give the base.
    """
    names = list(weights)

    def products(block: Block) -> Tensor:
        rows = torch.stack([block[name].reshape(-1) for name in names])
        return rows @ rows.T

    gram = deltas.total(products)
    squares = gram.diagonal()
    cosines = []
    for i, j in combinations(range(len(names)), 2):
        size = float(
            (squares[i] * squares[j]).sqrt()
        )  # one root: exactly the product if i equals j
        cosines.append(min(float(gram[i, j]) / size, 1.0) if size else 1.0)
    c = sum(cosines) / len(cosines)
    whole = 1 + (len(names) - 1) * c
    t = len(names) * c / whole if abs(whole) > SINGULAR else 0.0
    for block in deltas:
        yield t * mean(block, weights)
