"""GGUF files: the values, the tokenizer and the answers of the model that they were made from, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_gguf
from modalign.errors import UsageError
from modalign.models import gguf as reading
from modalign.models.importing import import_model
from modalign.models.local import unpacked
from modalign.models.open import open_model

TEXT = "two plus three is five. <|user|> Éa 12"
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def source(llm_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A Llama whose widths are whole blocks of a quantisation."""
    folder = tmp_path / "source"
    made: Any = AutoModelForCausalLM.from_pretrained(llm_folder("llama"))
    config = made.config
    config.intermediate_size = 64
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.dim() > 1 else parameter.add_(
                torch.randn(parameter.shape) / 8
            )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(llm_folder("llama")).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    """In float32."""
    with torch.no_grad():
        found: torch.Tensor = model.eval().float()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    ("stored", "dtype", "kept"),
    [
        ("F32", None, "float32"),
        ("F16", None, "float16"),
        ("BF16", None, "bfloat16"),
        ("Q8_0", None, "bfloat16"),
        ("Q8_0", "float32", "float32"),
    ],
)
def test_values_tokens_and_template_are_the_source_s(
    source: Path, tmp_path: Path, stored: str, dtype: str | None, kept: str
) -> None:
    """What a file's type rounds, and what the folder's dtype rounds after it, is all that differs."""
    file = tiny_gguf.write_gguf(source, tmp_path / "tiny.gguf", stored)
    made = import_model(file, tmp_path / "out", dtype=dtype)
    assert (made.dtype, made.model, made.folder) == (kept, "LlamaForCausalLM", tmp_path / "out")
    wanted: Any = AutoModelForCausalLM.from_pretrained(source)
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.dtype == getattr(torch, kept)
    assert made.parameters == sum(each.numel() for each in wanted.parameters())
    changed = whole = 0.0
    for name, tensor in wanted.state_dict().items():
        values = tensor
        if tensor.dim() == 2:
            form = gguf.GGMLQuantizationType[stored]
            values = torch.tensor(gguf.dequantize(gguf.quantize(tensor.numpy(), form), form))
        rounded = values.to(getattr(torch, kept))
        changed += float((rounded.double() - values.double()).square().sum())
        whole += float(values.double().square().sum())
        assert torch.equal(found.state_dict()[name], rounded), name
    assert made.rounding == pytest.approx((changed / whole) ** 0.5, rel=1e-3, abs=1e-12)
    if stored == "F32":
        torch.testing.assert_close(logits(found), logits(wanted), atol=1e-5, rtol=1e-5)
    before, after = (AutoTokenizer.from_pretrained(each) for each in (source, tmp_path / "out"))
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert after.chat_template == before.chat_template
    assert (after.eos_token_id, after.pad_token_id) == (before.eos_token_id, before.pad_token_id)


def test_a_tied_embedding_stays_tied(llm_folder: Callable[..., Path], tmp_path: Path) -> None:
    file = tiny_gguf.write_gguf(llm_folder("llama", tied=True), tmp_path / "tied.gguf", "F16")
    import_model(file, tmp_path / "out")
    model, _ = open_model(tmp_path / "out")
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_llama_3_s_rotary_factors_are_carried_over(source: Path, tmp_path: Path) -> None:
    """llama.cpp writes a factor per frequency instead of Llama 3's three numbers; transformers ignores it."""
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] |= {
        "rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(config))
    wanted: Any = AutoModelForCausalLM.from_pretrained(source)
    plain = 5e5 ** -(torch.arange(4) / 4)
    factors = (plain / wanted.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.max() == pytest.approx(8)
    extra = {"rope_freqs.weight": factors}
    file = tiny_gguf.write_gguf(source, tmp_path / "long.gguf", extra=extra)
    import_model(file, tmp_path / "out")
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(found.model.rotary_emb.inv_freq, wanted.model.rotary_emb.inv_freq)
    extra = {"rope_freqs.weight": factors**2}
    file = tiny_gguf.write_gguf(source, tmp_path / "other.gguf", extra=extra)
    with pytest.raises(UsageError, match="not Llama 3's"):
        import_model(file, tmp_path / "gone")


def test_a_file_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    def refused(said: str, **options: Any) -> None:
        file = tiny_gguf.write_gguf(source, tmp_path / "file.gguf", **options)
        with pytest.raises(UsageError, match=said) as caught:
            import_model(file, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(r"architecture 'clip', which transformers does not read", architecture="clip")
    refused(r"lacks model\.layers\.1\.mlp\.up_proj\.weight", without=("blk.1.ffn_up.weight",))
    bias = {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    refused(r"it would be another model", extra=bias)
    refused(r"one of 3 parts", parts=3)


def test_what_is_no_whole_file_is_refused(source: Path, tmp_path: Path) -> None:
    file = tiny_gguf.write_gguf(source, tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for size in (3, 12, 300, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"cut short|no GGUF file"):
            import_model(tmp_path / "cut.gguf", tmp_path / "out")
    (tmp_path / "noise.gguf").write_bytes(b"PK\x03\x04 an archive")
    with pytest.raises(UsageError, match="does not begin with the letters GGUF"):
        import_model(tmp_path / "noise.gguf", tmp_path / "out")
    with pytest.raises(UsageError, match="there is no such file"):
        import_model("./nowhere.gguf", tmp_path / "out")
    with pytest.raises(UsageError, match="is no GGUF file"):
        import_model(source, tmp_path / "out")
    unknown = bytearray(whole)
    place = whole.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    unknown[place] = 250  # a type of tensor that nobody has
    (tmp_path / "new.gguf").write_bytes(unknown)
    with pytest.raises(UsageError, match="quantisation that the package gguf does not know"):
        import_model(tmp_path / "new.gguf", tmp_path / "out")


def test_without_the_package_its_extra_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"pip install '\.\[gguf\]'"):
        reading.convert_gguf(tmp_path / "a.gguf", tmp_path / "out")


def test_it_is_unpacked_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    file = tiny_gguf.write_gguf(source, tmp_path / "tiny.gguf", "F16")
    first = Path(unpacked(file))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert (first.name, Path(unpacked(tmp_path / "tiny.gguf"))) == ("tiny", first)
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert unpacked(source) == source
    alone = tmp_path / "downloaded"
    alone.mkdir()
    file.rename(alone / "tiny.gguf")
    assert Path(unpacked(alone)).name == "tiny"
    (alone / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files"):
        unpacked(alone)
