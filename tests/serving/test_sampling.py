"""Draws follow the nucleus' probabilities; alternatives are the most likely tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from modalign.serving.requests import Sampling
from modalign.serving.sampling import alternatives, draw, generator_of
from modalign.serving.text import Spelling


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


def test_alternatives_are_the_most_likely(tokenizer: Any) -> None:
    known = torch.log_softmax(torch.arange(len(tokenizer)).float() / 7, -1)
    found = alternatives(Spelling(tokenizer), known, 3, first=True)
    best = [len(tokenizer) - 1 - n for n in range(3)]
    assert [each.name for each in found] == [tokenizer.decode([token]) for token in best]
    assert [each.logprob for each in found] == pytest.approx([float(known[n]) for n in best])
