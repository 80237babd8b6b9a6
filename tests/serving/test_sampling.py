"""Draws follow the nucleus' probabilities; alternatives are the most likely tokens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.serving.requests import Sampling
from modalign.serving.sampling import draw, generator_of, likely


def test_draws_have_the_probabilities_of_the_nucleus() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    sampling = Sampling(temperature=1.0, top_p=0.75, seed=1)
    generator = generator_of(sampling, torch.device("cpu"))
    assert generator is not None
    n = 4000
    counts = Counter(draw(logits, sampling, generator) for _ in range(n))
    assert set(counts) == {0, 1}  # 0.5 + 0.3 is the smallest set that reaches 0.75
    expected = 0.5 / 0.8
    assert abs(counts[0] / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_temperature_sharpens() -> None:
    logits = torch.log(torch.tensor([0.6, 0.4]))
    sampling = Sampling(temperature=0.1, seed=3)
    generator = generator_of(sampling, torch.device("cpu"))
    assert generator is not None
    expected = 0.4**10 / (0.6**10 + 0.4**10)
    drawn = sum(draw(logits, sampling, generator) for _ in range(2000)) / 2000
    assert drawn == pytest.approx(expected, abs=0.01)


def test_the_least_nucleus_is_the_greedy_choice() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    sampling = Sampling(temperature=5.0, top_p=0.0, seed=0)
    generator = generator_of(sampling, torch.device("cpu"))
    assert generator is not None
    assert {draw(logits, sampling, generator) for _ in range(50)} == {1}


def test_greedy_needs_no_generator() -> None:
    assert generator_of(Sampling(), torch.device("cpu")) is None


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 5e-38, 9.9e-6])
def test_below_a_bound_nothing_is_drawn(temperature: float) -> None:
    assert generator_of(Sampling(temperature=temperature), torch.device("cpu")) is None


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.floats(1e-5, 2.0),
    st.floats(0.0, 1.0),
)
def test_finite_logits_can_always_be_drawn_from(
    values: list[float], temperature: float, top_p: float
) -> None:
    logits = torch.tensor(values)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=1)
    generator = generator_of(sampling, torch.device("cpu"))
    assert generator is not None
    token = draw(logits, sampling, generator)
    # Drawn in float32: what is less likely than that can tell is not drawn.
    assert (logits.double() - logits.double().max())[token] >= -110 * temperature


@given(st.integers(1, 600), st.integers(0, 5), st.integers(0, 10**6))
@settings(max_examples=20)
def test_scores_are_the_log_softmax(places: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(places, 4, generator=generator)
    tokens = torch.randint(4, (places,), generator=generator).tolist()
    known = torch.log_softmax(logits.double(), -1)
    for place, (token, logprob, top) in enumerate(likely(logits, tokens, count)):
        assert token == tokens[place]
        assert logprob == pytest.approx(float(known[place, token]), abs=1e-5)
        best = sorted(range(4), key=lambda other: -float(known[place, other]))
        assert [other for other, _ in top] == best[:count]
        expected = [float(known[place, other]) for other in best[:count]]
        assert [value for _, value in top] == pytest.approx(expected, abs=1e-5)
