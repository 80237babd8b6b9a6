"""Modality integration rate: the distance against its definition, and what must not change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import tiny
from modalign.data.supervision import tokenise
from modalign.evaluation.diagnosis.mir import (
    frechet_distance,
    layer_distance,
    modality_integration_rate,
    without_outliers,
)


@pytest.mark.parametrize(("n", "m", "D"), [(50, 60, 5), (4, 30, 6), (200, 200, 1)])
def test_against_the_matrix_square_root(n: int, m: int, D: int) -> None:
    rng = np.random.default_rng(n)
    first = rng.normal(size=(n, D)) @ rng.normal(size=(D, D))
    second = rng.normal(size=(m, D)) + 2
    c1, c2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    gap = first.mean(0) - second.mean(0)
    expected = gap @ gap + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-4)


def test_invariances() -> None:
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(300, 8)), rng.normal(size=(200, 8)) * 2 + 1
    assert frechet_distance(text, text) == pytest.approx(0, abs=1e-6)
    assert layer_distance(text[:150], text[150:]) < 0.1 * layer_distance(image, text)
    assert layer_distance(image * 7, text * 7) == pytest.approx(layer_distance(image, text))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert layer_distance(image @ turn, text @ turn) == pytest.approx(layer_distance(image, text))
    assert layer_distance(image + 3, text) > layer_distance(image, text)
    shifted = text + np.eye(8)[0]  # a shift alone: the squared length of it
    assert frechet_distance(shifted, text) == pytest.approx(1)


def test_outliers_are_dropped() -> None:
    points = np.vstack([np.random.default_rng(0).normal(size=(100, 4)), np.full((1, 4), 50.0)])
    assert len(without_outliers(points)) == 100
    assert len(without_outliers(np.ones((5, 2)))) == 5


@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
def test_of_a_model(name: str, compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny(name)
    samples = [
        tokenise(tiny.record([tiny.image(i), "what is this?"], "yes"), processor.tokenizer)
        for i in range(30)
    ]
    samples.append(tokenise(tiny.record("what is this?", "yes"), processor.tokenizer))
    collator = tiny.collator(model, processor)
    rate = modality_integration_rate(model, samples, collator, torch.device("cpu"))
    if name != "mlp":
        assert rate is None  # no modality token enters the sequence
        return
    assert rate is not None
    packed = tiny.collator(model, processor, pack_length=400)
    assert modality_integration_rate(model, samples, packed, torch.device("cpu")) == pytest.approx(
        rate
    )
    with torch.no_grad():  # tokens moved far from the text
        for parameter in model.connectors.parameters():
            parameter.mul_(10)
    further = modality_integration_rate(model, samples, collator, torch.device("cpu"))
    assert further is not None
    assert further > rate
    assert modality_integration_rate(model, samples[-1:], collator, torch.device("cpu")) is None
