"""Opening a folder: causal language models, transformers' and our own multimodal ones, one function."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Gemma3Config,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from modalign.errors import UsageError
from modalign.models import local, pretrained
from modalign.models.asking import tokenizer_of
from modalign.models.export import save_model
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.open import open_model, takes_media

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_a_causal_model_opens_as_it_is_stored(llm_folder, family: str, tmp_path: Path):
    folder = llm_folder(family)
    model, tokenizer = open_model(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    assert not model.training
    assert tokenizer_of(tokenizer) is tokenizer
    plain = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(plain)  # no placeholder was added
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    assert open_model(tmp_path)[0].dtype == torch.bfloat16
    assert open_model(tmp_path, dtype=torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("connector", ["mlp", "resampler"])  # saved as Llava, with own code
def test_a_multimodal_model_opens_with_its_processor(compose_tiny, tmp_path: Path, connector: str):
    model, processor = compose_tiny(connector)
    save_model(model, processor, tmp_path / "model")
    opened, reader = open_model(tmp_path / "model")
    assert isinstance(reader, ProcessorMixin)
    assert tokenizer_of(reader).get_vocab() == processor.tokenizer.get_vocab()
    assert isinstance(opened, ModalignForConditionalGeneration) == (connector == "resampler")
    with torch.no_grad():
        expected, found = (each(input_ids=IDS).logits for each in (model, opened))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert open_model(tmp_path / "model", dtype=torch.float64)[0].dtype == torch.float64


def test_a_type_of_both_kinds_goes_by_its_architecture(tmp_path: Path):
    config = Gemma3Config()
    for names, images in (
        (["Gemma3ForConditionalGeneration"], True),
        (["Gemma3ForCausalLM"], False),
        (None, False),
    ):
        (tmp_path / "config.json").write_text(
            json.dumps(config.to_dict() | {"architectures": names})
        )
        assert takes_media(tmp_path) is images


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config.json"),
        ("{", "is not JSON"),
        ('{"model_type": "vit"}', "neither a causal language model"),
        ('{"model_type": "no-such-type"}', "cannot be loaded"),
        ('{"model_type": "gptj", "n_embd": 8}', "safetensors only"),
    ],
)
def test_what_cannot_be_opened_is_said(tmp_path: Path, content: str | None, said: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80pickle")
    with pytest.raises(UsageError, match=said) as caught:
        open_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(UsageError, match="no such folder"):
        open_model(tmp_path / "gone")
    with pytest.raises(UsageError, match="no such folder"):
        open_model("./gone")


def test_a_name_beyond_reach_is_refused_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nothing listens, and an address whose name cannot be looked up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(local, "getproxies", dict)
    for endpoint in (closed, "https://nowhere.invalid"):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"cannot be loaded.*{re.escape(endpoint)} does"):
            pretrained.read_pretrained(AutoConfig, "nobody/nothing")
        assert time.monotonic() - started < 5  # the hub's client would try for a minute


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/no/where"])
def test_a_path_to_nothing_is_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(repr(name))} cannot be loaded: there is no"):
        pretrained.read_pretrained(AutoConfig, name)
