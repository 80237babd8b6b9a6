"""Relation vectors by a dense singular value decomposition, and what has to hold of them."""

from __future__ import annotations

import numpy as np

from modalign.index.relations import relation_vectors

GROUPS = [(0, 1, 2), (0, 1), (3, 4), (3, 4, 5), (0, 2)]


def dense(groups: list[tuple[int, ...]], count: int) -> np.ndarray:
    incidence = np.zeros((count, len(groups)))
    for place, group in enumerate(groups):
        for item in group:
            incidence[item, place] = 1
    degrees = [np.maximum(incidence.sum(axis), 1) for axis in (1, 0)]
    return incidence / np.sqrt(degrees[0])[:, None] / np.sqrt(degrees[1])[None]


def test_products_are_those_of_the_best_approximation() -> None:
    found = relation_vectors(GROUPS, 7, 3).astype(float)
    left, values, _ = np.linalg.svd(dense(GROUPS, 7))
    best = left[:, :3] * values[:3]
    scale = np.linalg.norm(best[:6], axis=1).mean()
    assert np.allclose(found @ found.T, best @ best.T / scale**2, atol=1e-5)
    assert np.isclose(np.linalg.norm(found[:6], axis=1).mean(), 1, atol=1e-5)


def test_items_of_one_group_are_alike_and_items_in_none_are_nothing() -> None:
    found = relation_vectors(GROUPS, 7, 3)
    assert found.dtype == np.float32
    assert not found[6].any()
    unit = found[:6] / np.linalg.norm(found[:6], axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[:3, :3].min() > alike[:3, 3:].max()
    assert np.array_equal(found, relation_vectors(GROUPS, 7, 3))


def test_too_few_groups_leave_dimensions_empty() -> None:
    assert not relation_vectors([], 4).any()
    assert not relation_vectors([(0, 1)], 4).any()
    found = relation_vectors([(0, 1), (2, 3)], 4, 8)
    assert found.shape == (4, 8)
    assert not found[:, 1:].any()
