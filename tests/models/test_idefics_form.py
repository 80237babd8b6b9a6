"""``idefics_cross_attention`` against transformers' Idefics, and why its processor is ours.

The oracle is IdeficsForVisionText2Text around the same weights, given a mask of images that is written
here by hand: the class computes what we compute. The class's own processor gives other prompts.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    IdeficsForVisionText2Text,
    IdeficsImageProcessorPil,
    IdeficsProcessor,
)

import tiny
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export.native import build_native
from modalign.starter import language

RESAMPLER = {"num_tokens": 5, "layers": 2, "heads": 2, "head_size": 10}
FORMS: dict[str, dict[str, Any]] = {
    "resampler": {"gate": "scalar", "every": 2, "resampler": RESAMPLER},
    "all features": {"gate": "vector", "every": 1, "resampler": None},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip")
    for part in tiny.tower("clip"):
        part.save_pretrained(path)
    return str(path)


def ours(clip: str, form: str) -> Any:
    """A composed model and its processor."""
    tokenizer = language.build_tokenizer()
    prepare_tokenizer(tokenizer)
    options = {"heads": 4, "head_size": 8, "ffn": 48, **FORMS[form]}
    parts = LanguageModel("tiny", tiny.language_model("ungrouped", len(tokenizer)), tokenizer)
    encoder = load_image_encoder(clip, layer="all")
    model, processor = compose(parts, encoder, "idefics_cross_attention", options=options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval(), processor


def batch(model: Any, rows: list[list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What both are given: left-padded rows in which -1 is an image."""
    mark = model.config.bridges["image"]["token_id"]
    T, most = max(map(len, rows)), max(1, *(row.count(-1) for row in rows))
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    attention = torch.zeros_like(ids)
    seen = torch.zeros(len(rows), T, most)
    count = sum(row.count(-1) for row in rows)
    pixels = torch.randn(count, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(4))
    padded = torch.zeros(len(rows), most, 3, tiny.SIDE, tiny.SIDE)
    left = list(pixels)
    for number, row in enumerate(rows):
        start, current = T - len(row), -1
        attention[number, start:] = 1
        for place, token in enumerate(row, start):
            ids[number, place] = mark if token == -1 else token
            if token == -1:
                current += 1
                padded[number, current] = left.pop(0)
            if current >= 0:
                seen[number, place, current] = 1
    both = {"input_ids": ids, "attention_mask": attention}
    image = {"pixel_values": pixels} if count else {}
    return both | image, both | {"pixel_values": padded, "image_attention_mask": seen}


ROWS = {
    "images and texts": [[5, 6, -1, 7, 8, -1, 9, 10], [-1, 11, 12], [13, 14, 15, 16, 17]],
    "texts alone": [[5, 6, 7], [8, 9, 10, 11]],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_transformers_idefics_computes_the_same(clip: str, form: str, rows: str) -> None:
    model, processor = ours(clip, form)
    native = build_native(model, processor).model.eval()
    assert type(native) is IdeficsForVisionText2Text
    mine, given = batch(model, ROWS[rows])
    real = mine["attention_mask"].bool()
    expected = native(**given).logits[real]
    torch.testing.assert_close(model(**mine).logits[real], expected, atol=2e-5, rtol=1e-5)
    length = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**mine, **length), native.generate(**given, **length))
    if rows == "images and texts":  # what is compared depends on the images
        given["pixel_values"] = given["pixel_values"].flip(1)
        assert not torch.allclose(native(**given).logits[real], expected, atol=1e-2)


@torch.no_grad()
def test_a_text_is_read_alike_alone_and_beside_images(clip: str) -> None:
    model, _ = ours(clip, "resampler")
    text = ROWS["images and texts"][2]
    alone, _ = batch(model, [text])
    mixed, _ = batch(model, ROWS["images and texts"])
    found = model(**mixed).logits[2, -len(text) :]
    torch.testing.assert_close(found, model(**alone).logits[0], atol=1e-5, rtol=1e-5)
    bare = model.language_model(**alone).logits  # hooks are on its layers: the SwiGLU runs
    torch.testing.assert_close(bare, model(**alone).logits)


def test_what_stands_against_its_own_processor() -> None:
    """If one of these fails, transformers has changed, and IdeficsProcessor may do instead of ours."""
    tokenizer = language.build_tokenizer()
    prepare_tokenizer(tokenizer)
    tokenizer._set_model_specific_special_tokens({"image_token": "<image>"})
    template = tokenizer.chat_template
    images = IdeficsImageProcessorPil(size={"height": tiny.SIDE, "width": tiny.SIDE})
    processor = IdeficsProcessor(images, copy.deepcopy(tokenizer), chat_template=template)
    assert processor.chat_template is None
    made = processor(text=["a<image>b"], images=[[tiny.picture(0)]])
    prompt = tokenizer.decode(made["input_ids"][0])
    mark = "<fake_token_around_image>"
    assert prompt == f"Nonea<image>b{mark}<image>{mark}"
    texts = processor(text=["a", "b"])
    assert tokenizer.decode(texts["input_ids"][0]) == "Noneab"
    turns = processor(text=["a<image>b<|end|>c"], images=[[tiny.picture(0)]])
    c = tokenizer.convert_tokens_to_ids("c")
    place = turns["input_ids"][0].tolist().index(c)
    assert turns["image_attention_mask"][0, place - 1].any()  # the end token sees the image
    assert not turns["image_attention_mask"][0, place].any()
