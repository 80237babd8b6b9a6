"""Mutual kNN and unbiased CKA: slow plain versions, invariances, and what chance is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.evaluation.diagnosis.text_similarity import (
    FEWEST,
    MEASURES,
    Measure,
    centred_kernel,
    compare,
    neighbour_weights,
    neighbours,
    similarity,
)

seeds = st.integers(0, 10_000)


def spaces(seed: int, n: int = 14) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(n, 5))
    return first, first @ rng.normal(size=(5, 7)) + 0.5 * rng.normal(size=(n, 7))


def turned(D: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def mutual_knn(first: np.ndarray, second: np.ndarray, k: int) -> float:
    return of(MEASURES[0], first, second, k)


def unbiased_cka(first: np.ndarray, second: np.ndarray) -> float:
    return of(MEASURES[1], first, second, 0)


def of(measure: Measure, first: np.ndarray, second: np.ndarray, k: int) -> float:
    """One number of two whole spaces, as a measure says how to sum it."""
    product = measure.relation(first, k) * measure.relation(second, k)
    return float(product.sum() / measure.scale(len(first), k))


def plain_knn(first: np.ndarray, second: np.ndarray, k: int) -> float:
    """Sets of neighbours, item by item."""

    def nearest(points: np.ndarray, i: int) -> set[int]:
        cosines = {
            j: points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j])
            for j in range(len(points))
            if j != i
        }
        return set(sorted(cosines, key=cosines.__getitem__, reverse=True)[:k])

    shared = [len(nearest(first, i) & nearest(second, i)) / k for i in range(len(first))]
    return float(np.mean(shared))


def plain_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. 2012, the U-statistic: over all ordered quadruples of different items."""
    K, L, n = first @ first.T, second @ second.T, len(first)
    terms = [
        K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in permutations(range(n), 4)
    ]
    return float(np.mean(terms))


@given(seeds, st.integers(1, 6))
def test_mutual_knn_against_sets(seed: int, k: int) -> None:
    first, second = spaces(seed)
    assert mutual_knn(first, second, k) == pytest.approx(plain_knn(first, second, k))


@given(seeds)
def test_mutual_knn_sees_directions_only(seed: int) -> None:
    first, second = spaces(seed)
    value = mutual_knn(first, second, 4)
    lengths = np.random.default_rng(seed).uniform(0.1, 9, size=(14, 1))
    assert mutual_knn(first @ turned(5, seed) * lengths, second, 4) == pytest.approx(value)
    assert mutual_knn(second, first, 4) == pytest.approx(value)
    order = np.random.default_rng(seed).permutation(14)
    assert mutual_knn(first[order], second[order], 4) == pytest.approx(value)
    assert mutual_knn(first, 3 * first, 4) == pytest.approx(1)


@given(seeds)
def test_ties_are_shared(seed: int) -> None:
    """Weights of a row sum to k; equal items weigh the same; random ways to break ties agree on average."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(4, 3))[rng.integers(4, size=12)]  # few different ones
    weights = neighbour_weights(points, 3)
    assert weights.sum(axis=1) == pytest.approx(np.full(12, 3.0))
    assert np.diag(weights) == pytest.approx(np.zeros(12))
    similarity_to = np.round(
        (points @ points.T)
        / np.linalg.norm(points, axis=1)
        / np.linalg.norm(points, axis=1)[:, None],
        9,
    )
    for i in range(12):
        for j in range(12):
            for q in range(12):
                if i not in (j, q) and similarity_to[i, j] == similarity_to[i, q]:
                    assert weights[i, j] == pytest.approx(weights[i, q])


def test_items_that_are_all_alike_agree_by_chance_only() -> None:
    same, other = np.ones((20, 3)), np.random.default_rng(0).normal(size=(20, 4))
    assert mutual_knn(same, other, 4) == pytest.approx(4 / 19)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_hsic_is_the_u_statistic(seed: int) -> None:
    first, second = spaces(seed, n=7)
    summed = (centred_kernel(first) * centred_kernel(second)).sum()
    assert summed / (7 * 4) == pytest.approx(plain_hsic(first, second))


@given(seeds)
def test_cka_does_not_see_rotation_scale_or_shift(seed: int) -> None:
    first, second = spaces(seed)
    value = unbiased_cka(first, second)
    moved = 7 * first @ turned(5, seed) + np.random.default_rng(seed).normal(size=5)
    assert unbiased_cka(moved, second) == pytest.approx(value)
    assert unbiased_cka(second, first) == pytest.approx(value)
    assert unbiased_cka(first, -2 * first) == pytest.approx(1)
    assert value <= 1 + 1e-12


def test_cka_of_independent_features_is_zero_on_average() -> None:
    """Also with many more dimensions than items, where the biased one is near 1."""
    rng = np.random.default_rng(0)
    values = [
        unbiased_cka(rng.normal(size=(12, 200)), rng.normal(size=(12, 200))) for _ in range(300)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    first, second = rng.normal(size=(12, 200)), rng.normal(size=(12, 200))
    centred = [x - x.mean(axis=0) for x in (first, second)]
    kernels = [x @ x.T for x in centred]
    biased = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(k) for k in kernels])
    assert biased > 0.8


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_chance_is_what_random_pairings_give(measure) -> None:
    first, second = spaces(1, n=30)
    rng = np.random.default_rng(5)
    best, curve = compare(first, [second, rng.normal(size=(30, 7))], measure, seed=0)
    function = {"mutual kNN": lambda a, b: mutual_knn(a, b, neighbours(30))}.get(
        measure.name, unbiased_cka
    )
    assert curve[0].value == pytest.approx(function(first, second))
    plain = [function(first[rng.permutation(30)], second) for _ in range(300)]
    assert curve[0].chance == pytest.approx(np.mean(plain), abs=5 * np.std(plain) / np.sqrt(200))
    assert curve[0].chance_high == pytest.approx(np.percentile(plain, 97.5), abs=2 * np.std(plain))
    if measure.name == "mutual kNN":
        assert np.mean(plain) == pytest.approx(6 / 29, abs=0.02)
    assert best.value == curve[0].value
    assert (best.chance or 0) > (curve[0].chance or 0)  # the choice of the layer is paid for
    assert best.p == pytest.approx(1 / 201)
    assert (curve[1].p or 0) > 0.05


def test_few_items_are_refused_with_the_reason() -> None:
    rows = [np.ones(3)] * (FEWEST - 1)
    found = similarity("encoder_similarity", rows, [[row] for row in rows], 0)
    assert found.undefined is not None
    assert str(FEWEST) in found.undefined
