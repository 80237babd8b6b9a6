"""What a model writes: drawn from its own distribution, end marks and all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modalign.models.open import open_model
from modalign.models.sampling import own_samples


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_the_surprise_of_samples_is_the_entropy_of_the_model(
    llm_folder: Callable[..., Path], family: str
) -> None:
    """Also where rows reach an end mark: rows padded from there on would be far more surprising."""
    model, tokenizer = open_model(llm_folder(family))
    with torch.no_grad():  # some words, the end mark among them, are far likelier than others
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id = list(range(20))
    rows = torch.tensor(own_samples(model, tokenizer, 2000, length=16, top=None))
    assert rows.numel() >= 2000
    with torch.no_grad():
        told = model(rows).logits[:, :-1].double().log_softmax(-1)
    surprise = -told.gather(-1, rows[:, 1:, None]).flatten()
    entropy = -(told.exp() * told).sum(-1).flatten()
    error = float((surprise - entropy).std()) / math.sqrt(len(entropy))
    assert float(entropy.mean()) < 0.9 * math.log(told.shape[-1])  # the test could fail
    assert float(surprise.mean()) == pytest.approx(float(entropy.mean()), abs=4 * error)


def test_a_seed_gives_one_text(llm_folder: Callable[..., Path]) -> None:
    model, tokenizer = open_model(llm_folder())
    first, again, other = (own_samples(model, tokenizer, 64, seed=s, length=8) for s in (0, 0, 1))
    assert first == again != other
