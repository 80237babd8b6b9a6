"""A tokenizer larger than its model's embedding, and ids outside it, are found when the model is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tiny
from reports.threads import reported

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(llm_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A tiny GPT-2, to be spoiled."""
    return Path(shutil.copytree(llm_folder("gpt2"), tmp_path / "model"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A row and an edit."""
    rows = [{"question": "one?", "answer": "two"}] * 20
    edit = {"subject": "one", "prompt": "{} is", "target": "two", "truth": "seven"}
    return {
        "data": tiny.write_jsonl(tmp_path / "rows.jsonl", rows),
        "edits": tiny.write_jsonl(tmp_path / "edits.jsonl", [edit]),
        "out": tmp_path / "out",
    }


VERBS: dict[str, Callable[[Path, dict[str, Path]], list[Any]]] = {
    "ask": lambda model, has: ["ask", model, "one?"],
    "eval": lambda model, has: ["eval", model, has["data"]],
    "counterfact": lambda model, has: [
        "eval", model, "--task", "counterfact", "--edits", has["edits"]
    ],
    "edit": lambda model, has: ["edit", "run", model, has["edits"], "-o", f"{has['out']}.safetensors"],
    "stats": lambda model, has: ["edit", "stats", model],
    "suggest": lambda model, has: ["edit", "suggest", model, has["edits"]],
    "serve": lambda model, has: ["serve", model, "--port", "0"],
    "diagnose": lambda model, has: ["diagnose", model, has["data"]],
    "train": lambda model, has: [
        "train", "--llm", model, "--train", has["data"], "--encoder", "none", "--out", has["out"]
    ],
    "doctor": lambda model, has: ["doctor", "--llm", model, "--train", has["data"], "--encoder", "none"],
    "tools": lambda model, has: ["tools", "ask", "one?", "--llm", model],
}  # fmt: skip


@reported("huggingface/transformers#12763", "EuroEval/EuroEval#52")
@pytest.mark.parametrize("verb", VERBS)
def test_a_tokenizer_larger_than_the_embedding(
    cli: Cli, model: Path, files: dict[str, Path], verb: str
) -> None:
    """Reported: ask, eval and edit ended in an IndexError, serve was healthy and answered 500."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = len(tokenizer)
    tokenizer.add_tokens(["zyzzyva", "xylophone"])
    tokenizer.save_pretrained(model)
    code, out, err = cli(*VERBS[verb](model, files))
    said = " ".join((out + err).split())
    assert code == 2, said
    assert f"ids up to {rows + 1}" in said
    assert f"{rows} rows" in said
    assert "'xylophone'" in said


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@reported("huggingface/tokenizers#1609")
@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"vocab_size": 7}, "cannot be loaded"),
        ("config.json", {"image_token_id": 99_999}, "image_token_id 99999"),
        ("generation_config.json", {"eos_token_id": [1, 99_999]}, "eos_token_id 99999"),
        ("generation_config.json", {"suppress_tokens": [99_999]}, "suppress_tokens 99999"),
    ],
)
def test_ids_outside_the_embedding(
    cli: Cli, model: Path, file: str, values: dict[str, Any], said: str
) -> None:
    _change(model / "generation_config.json", _from_model_config=False)
    _change(model / file, **values)
    code, _, err = cli("ask", model, "one?")
    assert code == 2
    assert said in err


@reported("axolotl-ai-cloud/axolotl#2257")
def test_a_default_of_the_configuration_is_told_and_does_no_harm(
    cli: Cli, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GPT-2's configuration has an end token of its own size where nobody names one."""
    (model / "generation_config.json").unlink()
    _change(model / "config.json", eos_token_id=50_256)
    code, _, err = cli("ask", model, "one?", "--max-new-tokens", "2")
    assert code == 0, err
    assert "eos_token_id 50256" in caplog.text


@reported("EuroEval/EuroEval#52")
def test_special_tokens_that_nothing_writes_do_no_harm(cli: Cli, model: Path) -> None:
    """Transformers itself adds some (Qwen2's <|endoftext|>), beyond the embedding of a model of its own size."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|unused|>"]})
    tokenizer.save_pretrained(model)
    code, _, err = cli("ask", model, "<|unused|> one?", "--max-new-tokens", "2")
    assert code == 0, err
    tokenizer.pad_token = "<|unused|>"
    tokenizer.save_pretrained(model)
    code, _, err = cli("ask", model, "one?")
    assert code == 2
    assert "<|unused|>" in err
