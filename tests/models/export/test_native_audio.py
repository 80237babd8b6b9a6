"""Models that hear, as transformers' own class: the same ids, logits and answers, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

import natively
from modalign.models import probe
from modalign.models.asking import modalities_of, signals_of
from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.loading import load_encoder
from modalign.models.export import (
    Expected,
    load_model,
    observe,
    save_model,
    verify_in_clean_process,
    verify_saved,
)
from modalign.models.export.native import NotNativeError, build_native
from modalign.models.processing_voxtral import ModalignVoxtralProcessor
from natively import RATE, SECONDS

transformers.utils.logging.disable_progress_bar()

NEW = 4  # greedy tokens


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whisper")
    natively.whisper(folder)
    return str(folder)


@pytest.fixture(scope="module")
def heard(whisper: str, llm_folder: Callable[..., Path]) -> Callable[..., Any]:
    def make(connector: str, family: str = "llama", tied: bool = False, **given: Any) -> Any:
        form = given.pop("form", "qwen2_audio")
        torch.manual_seed(1)
        encoder = load_encoder("audio", whisper, [], {"form": form})
        llm = load_language_model(str(llm_folder(family, tied)), modalities=("audio",))
        model, processor = compose(llm, encoder, connector, options=given)
        return model.eval(), processor

    return make


def asked(*parts: Any) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=RATE * SECONDS).astype(np.float32) / 10
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "audio", "audio": noise[: round(part * RATE)]}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


# Lengths on both sides of a step of 40 ms, one whole window, one of two steps.
TALKS = [asked(0.81, "what is it?"), asked("a ", 0.83, " b ", 2.0), asked("hi"), asked(0.09, "?")]


VOXTRAL: dict[str, Any] = {"form": "voxtral"}
CASES: dict[str, tuple[str, str, str, bool, dict[str, Any]]] = {
    "linear": ("Qwen2Audio", "linear", "llama", False, {}),
    "pool-tied": ("Qwen2Audio", "pool_linear", "qwen2", True, {"pool": 1}),  # it ties no head
    "stack": ("Voxtral", "stack_mlp", "llama", False, VOXTRAL),
    "stack-tied": ("Voxtral", "stack_mlp", "qwen2", True, VOXTRAL),  # no head size of its own
}


@pytest.fixture(scope="module")
def saved(
    heard: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, float, float]]:
    """Folder, difference to the model loaded here, and to the one in a clean process."""
    root = tmp_path_factory.mktemp("native")
    here, expected = {}, []
    for name, (target, connector, family, tied, options) in CASES.items():
        model, processor = heard(connector, family, tied, **options)
        folder = save_model(model, processor, root / name, target=target).folder
        seen = observe(model, processor, TALKS, NEW)
        here[name] = verify_saved(folder, model, processor, TALKS, max_new_tokens=NEW, seen=seen)
        expected.append(Expected(folder, TALKS, seen, max_new_tokens=NEW))
    clean = verify_in_clean_process(expected)
    return {
        name: (root / name, here[name], found) for name, found in zip(CASES, clean, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_native_models_answer_the_same(
    name: str, saved: dict[str, tuple[Path, float, float]]
) -> None:
    folder, here, clean = saved[name]
    assert here <= 1e-5
    assert clean <= 1e-5
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        keys = set(tensors.keys())
    assert "audio_tower.conv1.weight" in keys
    layer = "linear" if CASES[name][0] == "Qwen2Audio" else "linear_1"
    assert f"multi_modal_projector.{layer}.weight" in keys
    assert {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"} <= keys


def test_linear_behind_that_form_is_native_without_being_asked(
    heard: Callable[..., Any], tmp_path: Path
) -> None:
    model, processor = heard("linear")
    assert save_model(model, processor, tmp_path / "model").kind == "native:Qwen2Audio"
    loaded, own = load_model(tmp_path / "model")
    assert type(loaded) is transformers.Qwen2AudioForConditionalGeneration
    assert modalities_of(own) == ["audio"]
    spec = signals_of(own)["audio"]["spec"]
    assert spec == {"rate": RATE, "max_seconds": float(SECONDS), "longer": "refuse"}


def test_stacked_features_of_that_form_are_native_and_their_processor_ours(
    heard: Callable[..., Any], tmp_path: Path
) -> None:
    model, processor = heard("stack_mlp", form="voxtral")
    saved = save_model(model, processor, tmp_path / "model")
    assert saved.kind == "native:Voxtral"
    assert "trust_remote_code=True" in saved.notes[0]
    loaded, own = load_model(tmp_path / "model")
    assert type(loaded) is transformers.VoxtralForConditionalGeneration
    assert type(own) is ModalignVoxtralProcessor
    assert modalities_of(own) == ["audio"]
    for name in ("config.json", "processor_config.json"):
        text = (tmp_path / "model" / name).read_text()
        assert ("auto_map" in text) == (name == "processor_config.json")


def test_a_head_size_that_the_decoder_does_not_state_is_written(
    saved: dict[str, tuple[Path, float, float]],
) -> None:
    """Voxtral fills up what is missing with 128."""
    config = transformers.AutoConfig.from_pretrained(saved["stack-tied"][0])
    assert config.text_config.head_dim == 8


def test_every_clip_gives_a_windows_tokens(heard: Callable[..., Any]) -> None:
    _, processor = heard("stack_mlp", form="voxtral")
    token = processor.tokenizer.convert_tokens_to_ids(processor.signals["audio"]["token"])
    for seconds in (0.05, 1.0, 2.0):
        found = probe.prepare(processor, [asked(seconds, "?")])
        assert int((found["input_ids"] == token).sum()) == 100 // 4


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("Qwen2Audio", "linear", {"form": "own"}, r"option form=qwen2_audio"),
    ("Qwen2Audio", "linear", {"form": "voxtral"}, r"option form=qwen2_audio"),
    ("Qwen2Audio", "mlp", {}, "one affine map, which 'mlp' is not"),
    ("Qwen2Audio", "pool_linear", {"pool": 2}, "averages 2 of its features"),
    ("Voxtral", "mlp", VOXTRAL, "no connector like 'mlp', only like 'stack_mlp'"),
    ("Voxtral", "stack_mlp", VOXTRAL | {"stack": 5}, "joins 4 features, but this connector 5"),
    ("Voxtral", "stack_mlp", {"form": "own"}, "option form=voxtral"),
    ("Voxtral", "stack_mlp", VOXTRAL | {"family": "gpt2"}, "GPT2Model has no embed_tokens"),
]


@pytest.mark.parametrize(("target", "connector", "options", "reason"), REFUSED)
def test_what_it_cannot_hold_is_said(
    heard: Callable[..., Any], target: str, connector: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotNativeError, match=reason):
        build_native(*heard(connector, **options), target=target)


def test_pool_linear_says_what_to_do(heard: Callable[..., Any]) -> None:
    with pytest.raises(NotNativeError, match="averages before its encoder's last norm: linear"):
        build_native(*heard("pool_linear", form="own"))
