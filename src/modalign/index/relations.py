"""Vectors of items from the groups that they occur in together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds

WIDTH = 64


def relation_vectors(
    groups: Sequence[Sequence[int]], count: int, width: int = WIDTH
) -> NDArray[np.float32]:
    """Return (count, width) vectors of items, alike where items share groups; zeros for items in none.

    The left singular vectors of the items' and groups' incidence, divided by the roots of both degrees, times
    their singular values: what light graph convolution propagates, without training (LightGCN, arXiv 2002.02126;
    as a low-pass filter: arXiv 2108.07567). The sign of a dimension is that of its largest entry; rows of items
    that occur have the mean length 1; dimensions beyond the rank are zero.

    Args:
        groups: of item numbers below ``count``.
        count: of items.
        width: of a vector.
    """
    found = np.zeros((count, width), dtype=np.float32)
    pairs = [(item, place) for place, group in enumerate(groups) for item in set(group)]
    if not pairs:
        return found
    items, places = np.array(pairs).T
    ones = np.ones(len(pairs))
    of_item = np.bincount(items, minlength=count)
    of_group = np.bincount(places, minlength=len(groups))
    ones /= np.sqrt(of_item[items] * of_group[places])
    matrix = coo_array((ones, (items, places)), shape=(count, len(groups))).tocsr()
    rank = min(width, *(size - 1 for size in matrix.shape))
    if rank < 1:
        return found
    left, values, _ = svds(matrix, k=rank, v0=np.ones(min(matrix.shape)), rng=0)
    order = np.argsort(-values, kind="stable")
    vectors = left[:, order] * values[order]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(rank)])
    vectors = vectors * np.where(signs == 0, 1, signs)
    lengths = np.linalg.norm(vectors, axis=1)
    found[:, :rank] = vectors / max(float(lengths[of_item > 0].mean()), 1e-12)
    return found
