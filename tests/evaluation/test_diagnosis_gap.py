"""Modality gap and lengths: against slow plain versions, and what must not change them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalign.evaluation.diagnosis.gap import Gap, mean_cosine, modality_gap
from modalign.evaluation.diagnosis.norms import Norms, norm_ratio
from modalign.numbers.sampling import Sampling

seeds = st.integers(0, 10_000)


def clouds(seed: int, D: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(7, D)) + 1, rng.normal(size=(9, D)) * 3


def turned(D: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


@given(seeds)
def test_the_gap_does_not_see_rotations_lengths_or_order(seed: int) -> None:
    first, second = clouds(seed)
    gap = modality_gap(first, second)
    turn = turned(6, seed + 1)
    assert modality_gap(first @ turn, second @ turn) == pytest.approx(gap)
    stretched = second * np.random.default_rng(seed).uniform(0.1, 9, size=(9, 1))
    assert modality_gap(first * 5, stretched) == pytest.approx(gap)
    assert modality_gap(second[::-1], first) == pytest.approx(gap)
    assert modality_gap(first, first[::-1]) == pytest.approx(0, abs=1e-12)
    assert 0 <= gap <= 2


def test_known_gaps() -> None:
    x, y = np.eye(2)
    assert modality_gap(np.array([x]), np.array([-3 * x])) == pytest.approx(2)
    assert modality_gap(np.array([x, x]), np.array([y])) == pytest.approx(np.sqrt(2))


@given(seeds)
def test_mean_cosine_is_that_of_all_pairs(seed: int) -> None:
    points = clouds(seed)[0]
    plain = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in combinations(points, 2)]
    assert mean_cosine(points) == pytest.approx(np.mean(plain))
    assert mean_cosine(points @ turned(6, seed)) == pytest.approx(np.mean(plain))


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
    assert found["gap"].value == pytest.approx(modality_gap(first, second))
    assert found["cosine inside image"].value == pytest.approx(mean_cosine(first))
    assert found["cosine inside text"].value == pytest.approx(mean_cosine(second))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    assert found["cosine between"].value == pytest.approx((unit[0] @ unit[1].T).mean())
    lengths = norms.result().figures
    assert lengths["ratio"].value == pytest.approx(norm_ratio(first, second))
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
    ratio = norm_ratio(first, second)
    assert norm_ratio(first * scale, second) == pytest.approx(ratio * scale)
    assert norm_ratio(first * scale, second * scale) == pytest.approx(ratio)
    assert norm_ratio(first @ turned(6, seed), second) == pytest.approx(ratio)
