"""Asking a suite: the language model inside a model with media, and likelihoods by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.records import Source
from modalign.errors import ModalignError
from modalign.evaluation.rolling import read_texts
from modalign.evaluation.suites.asking import Asked, random_weights
from modalign.evaluation.suites.domains import Domain
from modalign.evaluation.suites.parts import Passage, Question
from modalign.evaluation.suites.truthfulqa import Mc1
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model

WORDS = ("it is one", "the top left is a two")


def _part(count: int = 3) -> Mc1:
    items = [
        Question(Source("f", n), f"what is {n}?", f"what is {n}?", WORDS, (True, False))
        for n in range(count)
    ]
    return Mc1("mc1", items, (), orders=2, seed=0)


def _texts() -> Domain:
    text = "the top left is a three and the top right is a four. " * 3
    return Domain("text", [Passage(Source("f", n), text[n:]) for n in (0, 9)])


@pytest.mark.parametrize("connector", ["linear", "gated_cross_attention"])
def test_of_a_model_with_media_its_language_model_is_asked(
    compose_tiny: Callable[..., Any], connector: str
) -> None:
    """Bit for bit: with the encoder and the connector, and without."""
    model, processor = compose_tiny(connector)
    tokenizer: Any = tokenizer_of(processor)
    whole = [Asked(model, processor).answers(part) for part in (_part(), _texts())]
    alone = [Asked(model.language_model, tokenizer).answers(part) for part in (_part(), _texts())]
    assert whole == alone


def test_the_sum_is_of_the_options_tokens_after_the_prompt(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder("llama"))
    tokenizer: Any = reader
    (answer,) = Asked(model, reader).answers(_part(1))
    assert answer is not None
    for option, found in zip(WORDS, answer["sums"], strict=True):
        ids = tokenizer(f"what is 0? {option}", return_tensors="pt")["input_ids"]
        start = len(tokenizer("what is 0?")["input_ids"])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        each = logs[range(ids.shape[1] - 1), ids[0, 1:]]
        assert found == pytest.approx(float(each[start - 1 :].sum()), abs=1e-4)


def test_a_text_is_read_from_the_first_token(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder("llama"))
    tokenizer: Any = reader
    text = _texts().items[0].text
    ids = tokenizer(text)["input_ids"]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        logs = model(torch.tensor([[first, *ids]])).logits[0, :-1].log_softmax(-1)
    expected = float(logs[range(len(ids)), ids].sum())
    ((total, tokens),) = read_texts(model, tokenizer, [text])
    assert (total, tokens) == (pytest.approx(expected, abs=1e-3), len(ids))
    ((short, _),) = read_texts(model, tokenizer, [text], window=8)
    assert short != pytest.approx(expected, abs=1e-3)


def test_random_weights_have_the_shape_and_other_values(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder("qwen2"))
    asked = Asked(model, reader)
    drawn = []
    for seed in (0, 0, 1):
        with random_weights(asked, seed) as other:
            assert isinstance(other, Asked)
            drawn.append(other.model.state_dict())
    assert {k: v.shape for k, v in drawn[0].items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    weight = "model.layers.0.mlp.up_proj.weight"
    assert tiny.largest_difference(drawn[0][weight], drawn[1][weight]) == 0
    assert tiny.largest_difference(drawn[0][weight], drawn[2][weight]) > 0
    assert tiny.largest_difference(drawn[0][weight], model.state_dict()[weight]) > 0


def test_a_broken_model_is_no_result(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder("llama"))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    for part in (_part(), _texts()):
        with pytest.raises(ModalignError, match="log-likelihoods are not finite"):
            Asked(model, reader).answers(part)
