"""Adapters of strangers: in a folder of their own, or beside weights, where transformers lays them over the model.

A folder with a whole model and an ``adapter_config.json`` answered with the adapter, without a word; a rank of
10^9 in it asked for 384 GB.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modalign.errors import ModalignError
from modalign.models.compose import load_language_model
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from reports.threads import reported

Cli = Callable[..., tuple[int, str, str]]
TARGET = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
PLAIN = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


class Program:
    """A pickle that makes a file as it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def tensors(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        TARGET.format("A"): torch.full((2, 32), value),
        TARGET.format("B"): torch.full((32, 2), value),
    }


HOSTILE: dict[str, tuple[dict[str, Any], Any]] = {
    "zeros": ({}, tensors()),
    "not numbers": ({}, tensors(float("nan"))),
    "a pickle": ({}, Program),
    "a huge rank": ({"r": 10**9}, tensors()),
    "a rank below nothing": ({"r": -1}, tensors()),
    "another base": ({"base_model_name_or_path": "/etc"}, tensors()),
    "a base above": ({"base_model_name_or_path": "../../../../../etc"}, tensors()),
    "names that lead out": ({}, {"../../../../outside": torch.zeros(1)}),
    "names of other tensors": ({}, {"lm_head.weight": torch.zeros(1)}),
    "code by auto_mapping": (
        {
            "auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"},
            "task_type": None,
        },
        tensors(),
    ),
    "code by auto_map": ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, tensors()),
    "an expression without end": ({"target_modules": "(((a|m)+)+)+$"}, tensors()),
    "an unknown kind": ({"peft_type": "EVIL"}, tensors()),
    "a kind that is none": ({"peft_type": {"a": []}}, tensors()),
    "whole modules": ({"modules_to_save": ["embed_tokens", "lm_head"]}, tensors()),
    "no object": ({"": None}, b"[]"),
    "no JSON": ({"": None}, b"\x80\x04"),
    "deep JSON": ({"": None}, b"[" * 100_000),
    "a rank of none": ({"r": 0}, tensors()),
    "a rank of text": ({"r": "2"}, tensors()),
    "patterns in a list": ({"rank_pattern": ["q_proj"]}, tensors()),
    "a pattern without end": ({"rank_pattern": {"(((a|m)+)+)+x": 2}}, tensors()),
    "a scale that is no number": ({"lora_alpha": float("nan")}, tensors()),
    "a scale of text": ({"alpha_pattern": {"q_proj": "4"}}, tensors()),
}
SUM = {
    "zeros", "another base", "a base above", "code by auto_map", "code by auto_mapping",
    "an expression without end",
}  # fmt: skip


@pytest.fixture(params=["beside a model", "alone"])
def adapter(
    request: Any, llm_folder: Callable[..., Path], tmp_path: Path
) -> Callable[[str], tuple[Path, Path]]:
    """A name of the above -> its folder, and what must not come to be."""

    def make(name: str) -> tuple[Path, Path]:
        fields, weights = HOSTILE[name]
        folder, marker = tmp_path / "adapter", tmp_path / "ran"
        if request.param == "alone":
            folder.mkdir()
        else:
            shutil.copytree(llm_folder("llama"), folder)
            (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
        config = PLAIN | {"base_model_name_or_path": str(llm_folder("llama"))} | fields
        content = weights if isinstance(weights, bytes) else json.dumps(config).encode()
        (folder / "adapter_config.json").write_bytes(content)
        if weights is Program:
            (folder / "adapter_model.bin").write_bytes(pickle.dumps(Program(marker)))
        elif isinstance(weights, dict):
            save_file(weights, folder / "adapter_model.safetensors")
        return folder, marker

    return make


@reported("huggingface/peft#3085", "OpenBMB/VoxCPM#267")
@pytest.mark.parametrize("name", HOSTILE)
def test_every_reader_refuses_it_in_one_line(
    name: str, adapter: Callable[[str], tuple[Path, Path]]
) -> None:
    folder, marker = adapter(name)
    for read in (open_model, open_composed, load_language_model):
        with pytest.raises(ModalignError) as error:
            read(str(folder))
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)
        assert any(
            word in str(error.value) for word in ("peft adapter", "no model", "cannot be loaded")
        )
    assert not marker.exists()


@reported("huggingface/peft#3085")
@pytest.mark.parametrize("verb", ["ask", "eval", "embed"])
def test_verbs_say_so(verb: str, cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    shutil.copytree(llm_folder("llama"), model)
    (model / "adapter_config.json").write_text(json.dumps(PLAIN))
    save_file(tensors(), model / "adapter_model.safetensors")
    data.write_text('{"question": "one?", "answer": "two"}\n')
    more = {"ask": ["one?"], "eval": [data], "embed": [data, "-o", tmp_path / "out"]}
    code, _, err = cli(verb, model, *more[verb])
    assert code == 2, err
    assert "holds a peft adapter" in err
    assert len(err.strip().splitlines()) == 1


@reported("huggingface/peft#3085", "OpenBMB/VoxCPM#267")
@pytest.mark.parametrize("name", HOSTILE)
def test_merge_adds_it_up_by_its_numbers_or_refuses_it(
    name: str, adapter: Callable[[str], tuple[Path, Path]], cli: Cli, tmp_path: Path
) -> None:
    """What is added up is its tensors: neither its base is opened nor its code run."""
    folder, marker = adapter(name)
    out = tmp_path / "out"
    code, _, err = cli("merge", f"a={folder}", f"b={folder}", "-o", out, "--weight", "0.5,0.5")
    alone = not (folder / "config.json").exists()
    assert (code == 0) == (alone and name in SUM), err
    assert code in (0, 1, 2, 3)
    if code:
        assert len(err.strip().splitlines()) == 1
        assert "bug" not in err
        assert not (out / "adapter").exists()
    assert "antigravity" not in sys.modules
    assert not marker.exists()
