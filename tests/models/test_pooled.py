"""A record's vector is the hidden state of its own prompt, however records are batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.records import Message
from modalign.errors import DataError, UsageError
from modalign.models.asking import conversation_of, media_inputs, text_ids
from modalign.models.open import open_model
from modalign.models.pooled import ONE_WORD, frozen, pooled

TEXTS = ("is seven odd?", "one", "which digit is on the top left of it?", "two three")


def expected(model: Any, inputs: dict[str, Any], pooling: str) -> torch.Tensor:
    """By a pass of the record alone, with all hidden states."""
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    return states.mean(0) if pooling == "mean" else states[-1]


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # absolute positions: a shift would show
@pytest.mark.parametrize("pooling", ["last", "mean", "word"])
def test_of_texts(family: str, pooling: Any, llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder(family))
    records = [tiny.record(text, "an answer, which is left out") for text in TEXTS]
    told: list[tuple[int, int]] = []
    found = pooled(model, reader, records, pooling, tokens=40, progress=lambda *d: told.append(d))
    assert told[-1] == (4, 4)
    assert len(told) > 1
    for record, vector in zip(records, found, strict=True):
        text = record.messages[0].text + (ONE_WORD if pooling == "word" else "")
        ids = torch.tensor([text_ids(reader, conversation_of(tiny.record(text, "?"), reader))])
        assert torch.allclose(vector, expected(model, {"input_ids": ids}, pooling), atol=1e-4)
    assert torch.allclose(found, pooled(model, reader, records, pooling, tokens=9999), atol=1e-4)


@pytest.mark.parametrize("connector", ["mlp", "gated_cross_attention"])
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_of_media(connector: str, tokens: int, compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny(connector)
    records = [
        tiny.record([tiny.image(0), "which digit is this?"], "?"),
        tiny.record("is seven odd?", "?"),
        tiny.record([tiny.image(1), "which digit is this?"], "?"),
        tiny.record([tiny.image(1), "what?"], "no", [tiny.image(2), "and this?"], "?"),
    ]
    found = pooled(model, processor, records, tokens=tokens)
    for record, vector in zip(records, found, strict=True):
        inputs = media_inputs(processor, [conversation_of(record, processor)], [""])
        assert torch.allclose(vector, expected(model, inputs, "last"), atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-3)  # the picture counts


def test_frozen_features_are_the_encoders_mean_beside_the_texts_mean(
    compose_tiny: Callable[..., Any],
) -> None:
    model, processor = compose_tiny("mlp")
    records = [tiny.record([tiny.image(n), f"{'one ' * (n + 1)}?"], "?") for n in range(3)]
    found = frozen(model, processor, records)
    texts = pooled(
        model, processor, [tiny.record(r.messages[0].text, "?") for r in records], "mean"
    )
    for number, record in enumerate(records):
        inputs = media_inputs(processor, [conversation_of(record, processor)], [""])
        with torch.no_grad():
            picture = model.encode("image", inputs["pixel_values"]).values[0].mean(0)
        parts = [each / each.norm() for each in (picture, texts[number])]
        assert torch.allclose(found[number], torch.cat(parts), atol=1e-5)


def test_frozen_features_need_an_encoder(llm_folder: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="none or several"):
        frozen(*open_model(llm_folder()), [tiny.record("one", "?")])


def test_a_record_without_content_is_refused(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder())
    for text in ("", " \n"):
        with pytest.raises(DataError, match=r"data\.jsonl:1: has neither text nor a medium"):
            pooled(model, reader, [tiny.record(text, "?")])
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*positions"):
        pooled(model, reader, [tiny.record("one " * 300, "?")])
    asked = replace(tiny.record("one", "?"), messages=(Message("user", ("one",)),))
    assert torch.equal(
        pooled(model, reader, [asked]), pooled(model, reader, [tiny.record("one", "?")])
    )
