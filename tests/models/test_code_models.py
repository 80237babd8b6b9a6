"""Codes as ids: a plain causal LM fed with them says what the composed model says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from modalign.models.export import load_model, save_model

Compose = Callable[..., Any]


def ask(model: Any, processor: Any, count: int = 3) -> tuple[Tensor, Tensor, Any]:
    """Token ids with placeholders (rows of one image and unequal texts), mask, features."""
    words = ["what is this?", "which digit is it?", "is it a two?"][:count]
    image = processor.image_token * int(model.connector("image").num_tokens(tiny.PATCHES))
    batch = processor.tokenizer(
        [image + word for word in words], return_tensors="pt", padding=True, padding_side="left"
    )
    return batch["input_ids"], batch["attention_mask"], tiny.features(model, count)


@torch.no_grad()
def with_rows(model: Any, rows: Tensor) -> Any:
    """The language model alone, its vocabulary enlarged by rows."""
    plain = copy.deepcopy(model.language_model)
    size = plain.get_input_embeddings().num_embeddings
    plain.resize_token_embeddings(size + len(rows), mean_resizing=False)
    embedding, some = plain.get_input_embeddings(), torch.arange(5)
    scale = embedding(some).norm() / embedding.weight[some].norm()  # Gemma's multiplies its rows
    embedding.weight[size:] = rows / scale
    return plain


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@torch.no_grad()
def test_vq_codes_are_new_ids_of_a_plain_model(family: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny("vq_codes", family, num_codes=50)
    ids, mask, given = ask(model, processor)
    connector = model.connector("image")
    ours = model(input_ids=ids, attention_mask=mask, features={"image": given}).logits
    rows = connector.vocabulary_rows()
    plain = with_rows(model, rows)
    size = model.get_input_embeddings().num_embeddings
    codes = connector.codes(given.values, given.mask, given.grid)
    assert len(codes.unique()) > 2, "the test would be vain with one code for all"
    ids[ids == processor.image_token_id] = size + codes.flatten()
    theirs = plain(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(theirs[..., :size][real], ours[real], atol=1e-4, rtol=1e-4)
    # A head tied to the embedding scores the codes: suppressed, they are never said.
    told = plain.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=list(range(size, size + len(rows))),
        pad_token_id=0,
    )
    assert int(told[:, ids.shape[1] :].max()) < size


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@torch.no_grad()
def test_vocabulary_codes_are_words_of_the_same_model(family: str, compose_tiny: Compose) -> None:
    model, processor = compose_tiny("vocabulary_codes", family)
    ids, mask, given = ask(model, processor)
    ours = model(input_ids=ids, attention_mask=mask, features={"image": given}).logits
    words = model.connector("image").codes(given.values, given.mask, given.grid)
    assert len(words.unique()) > 2
    assert not set(words.flatten().tolist()) & set(processor.tokenizer.all_special_ids)
    ids[ids == processor.image_token_id] = words.flatten()
    theirs = model.language_model(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(theirs[real], ours[real], atol=1e-5, rtol=1e-5)


def test_what_may_be_chosen_is_the_tokenizers_affair_and_travels(
    compose_tiny: Compose, tmp_path: Path
) -> None:
    model, processor = compose_tiny("vocabulary_codes", words="whole")
    choices = model.connector("image").choices
    assert 0 < len(choices) < len(processor.tokenizer)
    save_model(model, processor, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    assert torch.equal(loaded.connector("image").choices, choices)
    ids, mask, given = ask(model, processor)
    inputs = {"input_ids": ids, "attention_mask": mask, "features": {"image": given}}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    names = [name for name, _ in loaded.connector("image").named_parameters()]
    assert not [name for name in names if "embedding" in name]


def test_a_copy_chooses_from_its_own_embedding(compose_tiny: Compose) -> None:
    model, processor = compose_tiny("vocabulary_codes")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.zero_()
    assert other.connector("image").encoder.embedding is other.get_input_embeddings()
    assert model.connector("image").encoder.embedding is model.get_input_embeddings()
    assert processor is not None
