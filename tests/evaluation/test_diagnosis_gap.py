"""Modality gap and lengths: against slow plain versions, and what must not change them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalign.evaluation.diagnosis.gap import Gap
from modalign.evaluation.diagnosis.norms import Norms
from modalign.numbers.sampling import Sampling

seeds = st.integers(0, 10_000)


def clouds(seed: int, D: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(7, D)) + 1, rng.normal(size=(9, D)) * 3


def turned(D: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def figures(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """What both diagnostics say of two clouds that come as two records."""
    sampling = Sampling(["0", "1"], 0)
    gap, norms = Gap("image", sampling), Norms("image", sampling)
    for part in (slice(0, len(first) // 2), slice(len(first) // 2, None)):
        both = torch.from_numpy(first[part].copy()), torch.from_numpy(second[part].copy())
        gap.add(*both)
        norms.add(*both)
    found = gap.result().figures | norms.result().figures
    return {name: figure.value for name, figure in found.items()}


def plain_gap(first: np.ndarray, second: np.ndarray) -> float:
    """Of centroids, row by row."""
    means = [np.mean([row / np.linalg.norm(row) for row in x], axis=0) for x in (first, second)]
    return float(np.linalg.norm(means[0] - means[1]))


def plain_cosine(points: np.ndarray) -> float:
    """Over all pairs of rows."""
    pairs = combinations(points, 2)
    return float(np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]))


@given(seeds)
def test_the_gap_does_not_see_rotations_lengths_or_order(seed: int) -> None:
    first, second = clouds(seed)
    gap = figures(first, second)["gap"]
    turn = turned(6, seed + 1)
    assert figures(first @ turn, second @ turn)["gap"] == pytest.approx(gap)
    stretched = second * np.random.default_rng(seed).uniform(0.1, 9, size=(9, 1))
    assert figures(first * 5, stretched)["gap"] == pytest.approx(gap)
    assert figures(second[::-1], first)["gap"] == pytest.approx(gap)
    assert figures(first, first[::-1])["gap"] == pytest.approx(0, abs=1e-12)
    assert gap == pytest.approx(plain_gap(first, second))
    assert 0 <= gap <= 2


def test_known_gaps() -> None:
    x, y = np.eye(2)
    assert figures(np.array([x, x]), np.array([-3 * x, -x]))["gap"] == pytest.approx(2)
    assert figures(np.array([x, x]), np.array([y, y]))["gap"] == pytest.approx(np.sqrt(2))


@given(seeds)
def test_the_cosine_inside_is_that_of_all_pairs(seed: int) -> None:
    points, others = clouds(seed)
    plain = plain_cosine(points)
    assert figures(points, others)["cosine inside image"] == pytest.approx(plain)
    turn = turned(6, seed)
    assert figures(points @ turn, others)["cosine inside image"] == pytest.approx(plain)


def collected(records: int) -> tuple[Gap, Norms, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(3)
    sampling = Sampling([str(i) for i in range(records)], 0)
    gap, norms = Gap("image", sampling), Norms("image", sampling)
    media = [rng.normal(size=(4, 5)) + 1 for _ in range(records)]
    texts = [rng.normal(size=(2 + i % 3, 5)) for i in range(records)]
    for own, text in zip(media, texts, strict=True):
        gap.add(torch.from_numpy(own), torch.from_numpy(text))
        norms.add(torch.from_numpy(own), torch.from_numpy(text))
    return gap, norms, media, texts


def test_record_by_record_is_the_same_as_all_at_once() -> None:
    gap, norms, media, texts = collected(12)
    first, second = np.concatenate(media), np.concatenate(texts)
    found = gap.result().figures
    assert found["gap"].value == pytest.approx(plain_gap(first, second))
    assert found["cosine inside image"].value == pytest.approx(plain_cosine(first))
    assert found["cosine inside text"].value == pytest.approx(plain_cosine(second))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    assert found["cosine between"].value == pytest.approx((unit[0] @ unit[1].T).mean())
    lengths = norms.result().figures
    assert lengths["ratio"].value == pytest.approx(
        np.mean([np.linalg.norm(x) for x in first]) / np.mean([np.linalg.norm(x) for x in second])
    )
    for figure in [*found.values(), *lengths.values()]:
        assert figure.low is not None
        assert figure.low < figure.value < (figure.high or 0)
        assert figure.n == 12


def test_texts_against_texts_are_chance() -> None:
    """Where both sides are drawn alike, the gap is what two halves of the texts give, or less."""
    rng = np.random.default_rng(0)
    gap = Gap("image", Sampling([str(i) for i in range(60)], 0))
    for _ in range(60):
        gap.add(*(torch.from_numpy(rng.normal(size=(5, 8)) + 1) for _ in range(2)))
    figure = gap.result().figures["gap"]
    assert figure.chance is not None
    assert figure.value < 1.5 * figure.chance


@given(seeds, st.floats(0.1, 50))
def test_the_ratio_scales_with_the_modality_alone(seed: int, scale: float) -> None:
    first, second = clouds(seed)
    ratio = figures(first, second)["ratio"]
    assert figures(first * scale, second)["ratio"] == pytest.approx(ratio * scale)
    assert figures(first * scale, second * scale)["ratio"] == pytest.approx(ratio)
    assert figures(first @ turned(6, seed), second)["ratio"] == pytest.approx(ratio)
