"""Lens, attention mass, divergence and noise: formulas, bounds, and what must not change them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

import tiny
from modalign.data.records import Media
from modalign.evaluation.diagnosis.attention import attention_mass, uniform_mass
from modalign.evaluation.diagnosis.lens import answer_tokens, entropy, find_readout
from modalign.evaluation.diagnosis.looking import divergence, is_right, noise_like
from modalign.evaluation.diagnosis.reading import ObservedModel, media_of, with_media_of
from modalign.models.parts import decoder_layers

seeds = st.integers(0, 10_000)


def logits(seed: int, rows: int = 3, words: int = 11) -> torch.Tensor:
    return 3 * torch.randn(rows, words, generator=torch.Generator().manual_seed(seed))


@given(seeds)
def test_entropy_and_divergence_against_scipy(seed: int) -> None:
    first, second = logits(seed), logits(seed + 1)
    p, q = (torch.softmax(x.double(), -1).numpy() for x in (first, second))
    assert entropy(first).numpy() == pytest.approx(scipy_entropy(p, axis=1), abs=1e-5)
    assert divergence(first, second) == pytest.approx(scipy_entropy(p, q, axis=1).mean())


@given(seeds)
def test_bounds(seed: int) -> None:
    first, second = logits(seed), logits(seed + 1)
    assert bool((entropy(first) >= 0).all())
    assert bool((entropy(first) <= math.log(11) + 1e-5).all())
    assert divergence(first, second) >= 0
    assert divergence(first, first + 5) == pytest.approx(
        0, abs=1e-9
    )  # logits are known up to a shift
    assert entropy(torch.zeros(11)) == pytest.approx(math.log(11))
    assert entropy(torch.eye(11)[0] * 1e4) == pytest.approx(0)


def test_a_greedy_answer_is_right_when_every_token_is() -> None:
    scores = torch.eye(4)[[1, 2, 0]]
    assert is_right(scores, torch.tensor([1, 2, 0]))
    assert not is_right(scores, torch.tensor([1, 2, 3]))


@given(seeds)
def test_attention_mass(seed: int) -> None:
    weights = torch.softmax(logits(seed, 2 * 6, 6).reshape(2, 6, 6), -1)
    rows, places = torch.tensor([4, 5]), torch.tensor([1, 2])
    plain = np.mean([sum(weights[h, r, c] for c in (1, 2)) for h in range(2) for r in (4, 5)])
    assert attention_mass(weights, rows, places) == pytest.approx(plain)
    assert attention_mass(weights, rows, torch.arange(6)) == pytest.approx(1)
    assert attention_mass(weights.flip(0), rows.flip(0), places) == pytest.approx(plain)


def test_uniform_attention_is_its_chance() -> None:
    T, rows, places = 7, torch.tensor([4, 6]), torch.tensor([1, 2, 5])
    uniform = torch.tril(torch.ones(T, T))
    uniform = (uniform / uniform.sum(-1, keepdim=True))[None]
    assert uniform_mass(rows, places) == pytest.approx(attention_mass(uniform, rows, places))
    assert uniform_mass(rows, places) == pytest.approx((2 / 5 + 3 / 7) / 2)


def test_noise_keeps_mean_spread_gaps_and_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 2 + 3 * torch.randn(2, 500, 4, generator=generator)
    values[0, 3] = float("nan")
    mask = torch.ones(2, 500, dtype=torch.bool)
    mask[1, 400:] = False
    values[1, 400:] = 77.0
    noise = noise_like(values, mask, seed=1)
    assert bool(noise[0, 3].isnan().all())
    assert bool((noise[1, 400:] == 77).all())
    drawn = noise[1, :400]
    assert float(drawn.mean()) == pytest.approx(2, abs=0.3)
    assert float(drawn.std()) == pytest.approx(3, abs=0.3)
    assert not torch.allclose(drawn, values[1, :400])
    assert torch.equal(noise_like(values, mask, 1)[1], noise[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma"])
def test_the_readout_of_the_last_layer_is_the_model_itself(
    family: str, compose_tiny: Callable[..., Any]
) -> None:
    model, processor = compose_tiny("mlp", family)
    subject = ObservedModel(model, processor)
    given_record = subject.given(tiny.record([tiny.image(0), "what is this?"], "seven"))
    read = find_readout(subject)
    assert read is not None
    raw: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(model.language_model)[-1].register_forward_hook(keep)
    seen = subject.look(given_record)
    handle.remove()
    with torch.no_grad():
        whole = model(**given_record.inputs).logits[0]
        # The last of the states is normed already: the head alone makes its logits.
        assert tiny.largest_difference(model.get_output_embeddings()(seen.states[-1]), whole) < 1e-4
        assert tiny.largest_difference(read(raw[0].reshape(len(whole), -1)), whole) < 1e-4


def test_tokens_of_an_answer(tokenizer: Any) -> None:
    ids = answer_tokens(tokenizer, "seven, two.")
    words = {tokenizer.decode([token]).strip() for token in ids}
    assert "".join(sorted(words)).isalpha()
    both = set(tokenizer(" two", add_special_tokens=False)["input_ids"])
    assert both <= ids


def test_only_one_modality_is_exchanged() -> None:
    series = Media("series", data=b"[[1.0], [2.0]]")
    record = tiny.record([tiny.image(0), "and", series, tiny.image(1)], "yes")
    other = with_media_of(record, "image", [tiny.image(5), tiny.image(6)])
    assert media_of(other, "image") == (tiny.image(5), tiny.image(6))
    assert media_of(other, "series") == media_of(record, "series")
    assert [m.modality for m in other.media()] == ["image", "series", "image"]
