"""Do similar media have similar texts? Mutual nearest neighbours and unbiased CKA.

Sources: mutual-kNN alignment from *The Platonic Representation Hypothesis* (Huh et al. 2024, arXiv
2405.07987); CKA with a linear kernel from Kornblith et al. 2019 (arXiv 1905.00414), with the unbiased
HSIC of Song et al. 2012 (JMLR 13, eq. 5), as Nguyen et al. 2021 (arXiv 2010.15327) use it. Both are
sums of products of two (n, n) matrices, so a random pairing of the items only reorders one of them; chance is
estimated from such pairings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic
from modalign.numbers.estimate import Estimate
from modalign.numbers.sampling import Sampling

NEIGHBOURS = 10
PAIRINGS = 200
FEWEST = 12  # fewest items for which the figures are meaningful
_DECIMALS = 9  # similarities that agree to this many are ties (equal texts, for example)

Floats = NDArray[np.float64]


def neighbour_weights(features: Floats, k: int) -> Floats:
    """Return (n, n): 1 if the column is among the row's k nearest by cosine, excluding itself.

    Ties at the k-th place share the remaining weight, which is the mean over all ways to break them.

    Args:
        features: (n, d).
        k: below n.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    similarity = np.round(unit @ unit.T, _DECIMALS)
    np.fill_diagonal(similarity, -np.inf)
    edge = np.partition(similarity, -k, axis=1)[:, -k, None]
    nearer, tied = similarity > edge, similarity == edge
    left = k - nearer.sum(axis=1, keepdims=True)
    return nearer + tied * (left / tied.sum(axis=1, keepdims=True))


def centred_kernel(features: Floats) -> Floats:
    """Return the (n, n) U-centred linear kernel: its products with another sum to n (n - 3) unbiased HSIC.

    (Szekely and Rizzo 2014, definition 2, is the same centring.)
    """
    kernel = features @ features.T
    np.fill_diagonal(kernel, 0.0)
    n = len(kernel)
    rows = kernel.sum(axis=1) / (n - 2)
    centred = kernel - rows[:, None] - rows[None] + kernel.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    return centred


def _unit(matrix: Floats) -> Floats:
    """Divide a matrix by its norm, so that products of two are at most 1; zeros stay zeros."""
    return matrix / max(float(np.linalg.norm(matrix)), 1e-300)


@dataclass(frozen=True)
class Measure:
    """A similarity of two spaces: the sum of the product of their matrices."""

    name: str
    relation: Callable[[Floats, int], Floats]  # features, k -> (n, n)
    scale: Callable[[int, int], float]  # n, k -> what the sum is divided by
    unit: str


MEASURES = (
    Measure("mutual kNN", neighbour_weights, lambda n, k: float(n * k), "share"),
    Measure("unbiased CKA", lambda x, k: _unit(centred_kernel(x)), lambda n, k: 1.0, ""),
)


def compare(
    first: Floats, layers: Sequence[Floats], measure: Measure, seed: int
) -> tuple[Estimate, list[Estimate]]:
    """Compare a space with several others of the same items.

    Args:
        first: (n, d).
        layers: each (n, e).
        measure: what is summed.
        seed: of pairings and of the jackknife.

    Returns:
        The largest value over layers, whose chance is the largest over layers of a random pairing (which
        accounts for the choice of the layer), and the figure of every layer.
    """
    n, k = len(first), neighbours(len(first))
    rng = np.random.default_rng(seed)
    own = measure.relation(first, k)
    others = np.stack([measure.relation(layer, k) for layer in layers])
    scale = measure.scale(n, k)
    values = (others * own).sum(axis=(1, 2)) / scale
    pairings = np.empty((PAIRINGS, len(layers)))
    for row in range(PAIRINGS):
        order = rng.permutation(n)
        pairings[row] = (others * own[np.ix_(order, order)]).sum(axis=(1, 2)) / scale

    def without(kept: NDArray[np.int64]) -> Floats:
        mine, fewer = measure.relation(first[kept], k), measure.scale(len(kept), k)
        return np.array([(measure.relation(x[kept], k) * mine).sum() / fewer for x in layers])

    low, high = Sampling([str(i) for i in range(n)], seed).jackknife(without)
    best = int(values.argmax())
    curve = [
        _figure(values[i], (low[i], high[i]), n, pairings[:, i], measure.unit)
        for i in range(len(layers))
    ]
    most = _figure(values[best], (low[best], high[best]), n, pairings.max(axis=1), measure.unit)
    return most, curve


def _figure(
    value: float, ends: tuple[float, float], n: int, pairings: Floats, unit: str
) -> Estimate:
    return Estimate(
        value=value,
        low=ends[0],
        high=ends[1],
        n=n,
        over="items",
        interval="jackknife",
        chance=float(pairings.mean()),
        chance_high=float(np.percentile(pairings, 97.5)),
        p=float((1 + (pairings >= value).sum()) / (1 + len(pairings))),
        unit=unit,
    )


def neighbours(n: int) -> int:
    """Return k for n items: ten, or fewer if that is most of them."""
    return max(1, min(NEIGHBOURS, n // 5))


def similarity(
    name: str, features: Sequence[Floats], texts: Sequence[Sequence[Floats]], seed: int
) -> Diagnostic:
    """Compare one space with the language model's layers.

    Args:
        name: of the diagnostic.
        features: per item (d,).
        texts: per item, per layer (D,).
        seed: of pairings and jackknife.
    """
    found = diagnostic(name)
    if len(features) < FEWEST:
        found.undefined = (
            f"{len(features)} distinct media with text are too few to tell neighbours from chance; "
            f"{FEWEST} are the least"
        )
        return found
    first = np.stack(features)
    layers = [np.stack(layer) for layer in zip(*texts, strict=True)]
    for measure in MEASURES:
        best, curve = compare(first, layers, measure, seed)
        layer = max(range(len(curve)), key=lambda i: curve[i].value)
        found.figures[f"{measure.name}, best layer ({layer})"] = best
        found.curves[measure.name] = curve
    found.notes.append(
        f"{len(first)} items (distinct media with the texts said of them), "
        f"{neighbours(len(first))} neighbours, {PAIRINGS} random pairings"
    )
    return found
