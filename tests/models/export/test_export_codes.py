"""Discrete codes as token ids: the plain model and the signal's tokenizer say what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import every_modality
from modalign.models.asking import conversation_of
from modalign.models.export import Expected, observe, verify_in_clean_process
from modalign.models.export.codes import SIGNAL, code_token, save_codes
from modalign.models.export.native import NotNativeError

transformers.utils.logging.disable_progress_bar()

Compose = Callable[..., Any]
NEW = 4  # greedy tokens
CODES = 50
CASES = {
    "vq-llama": ("vq_codes", "llama", {"num_codes": CODES}),
    "vq-gpt2": ("vq_codes", "gpt2", {"num_codes": CODES}),  # its head is tied: it scores the codes
    "vq-gemma": ("vq_codes", "gemma", {"num_codes": CODES}),  # its embedding has a factor
    "words-llama": ("vocabulary_codes", "llama", {}),
}
SOUNDS = "vq-audio-series"


@pytest.fixture(scope="module")
def saved(
    compose_tiny: Compose, llm_folder: Callable[..., Path], tmp_path_factory: Any
) -> dict[str, tuple[Path, Any, Any]]:
    root = tmp_path_factory.mktemp("codes")
    made = {}
    for name in [*CASES, SOUNDS]:
        if name == SOUNDS:
            model, processor, _ = every_modality.composed(
                str(llm_folder()), ("audio", "series"), "vq_codes"
            )
        else:
            connector, family, options = CASES[name]
            model, processor = compose_tiny(connector, family, **options)
        folder = root / name
        folder.mkdir()
        save_codes(model, processor, folder)
        made[name] = (folder, model, processor)
    return made


def talks(name: str, processor: Any) -> list[Any]:
    first, second = ("audio", "series") if name == SOUNDS else ("image", "image")
    kinds = [(first,), (second, first), ()]
    records = [every_modality.record(*kind, row=row + 1) for row, kind in enumerate(kinds)]
    return [conversation_of(record, processor) for record in records]


@pytest.fixture(scope="module")
def clean(saved: dict[str, tuple[Path, Any, Any]]) -> dict[str, float]:
    expected = []
    for name, (folder, model, processor) in saved.items():
        asked = talks(name, processor)
        seen = observe(model, processor, asked, NEW)
        expected.append(
            Expected(folder, asked, seen, max_new_tokens=NEW, form="codes", media=folder / SIGNAL)
        )
    return dict(zip(saved, verify_in_clean_process(expected), strict=True))


@pytest.mark.parametrize("name", [*CASES, SOUNDS])
def test_the_plain_model_answers_the_same_on_code_ids(name: str, clean: dict[str, float]) -> None:
    assert clean[name] <= 1e-4


def test_codes_are_tokens_of_the_tokenizer(saved: dict[str, tuple[Path, Any, Any]]) -> None:
    folder, model, _ = saved["vq-llama"]
    size = model.get_input_embeddings().num_embeddings
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a" + code_token("image", 3) + code_token("image", CODES - 1) + "b"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [token for token in ids if token >= size] == [size + 3, size + CODES - 1]
    assert len(tokenizer) == size + CODES
    plain = AutoModelForCausalLM.from_pretrained(folder)
    rows = plain.get_input_embeddings().weight[size:]
    torch.testing.assert_close(rows, model.connector("image").vocabulary_rows())


def test_codes_are_never_said(saved: dict[str, tuple[Path, Any, Any]]) -> None:
    folder, model, processor = saved["vq-gpt2"]
    size = model.get_input_embeddings().num_embeddings
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [
        processor.image_token_id,
        *range(size, size + CODES),
    ]


def test_two_modalities_have_rows_of_their_own(saved: dict[str, tuple[Path, Any, Any]]) -> None:
    folder, model, _ = saved[SOUNDS]
    values = json.loads((folder / SIGNAL / "config.json").read_text())
    size = model.get_input_embeddings().num_embeddings
    first = len(model.connector("audio").vocabulary_rows())
    assert values["code_offsets"] == {"audio": size, "series": size + first}


def test_words_need_no_new_rows(saved: dict[str, tuple[Path, Any, Any]]) -> None:
    folder, model, _ = saved["words-llama"]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in model.language_model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name


def test_what_has_no_codes_is_refused(compose_tiny: Compose, tmp_path: Path) -> None:
    model, processor = compose_tiny("mlp")
    with pytest.raises(NotNativeError, match="'mlp' are not discrete codes"):
        save_codes(model, processor, tmp_path)
    assert not list(tmp_path.iterdir())
