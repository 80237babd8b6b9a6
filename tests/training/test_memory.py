"""The memory estimate against the measured peak of processes that train."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import tiny
from modalign.memory import _group_free, available, readable, resident
from modalign.starter.language import build_tokenizer
from modalign.training.memory.estimate import MemoryEstimate
from modalign.training.memory.trace import MemoryTrace

CHILD = Path(__file__).with_name("memory_child.py")
SIDE = 64
TOLERANCE = 0.2
MODES = ("frozen", "lora", "full")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model of 69 million parameters, a tower and 16 rows."""
    folder = tmp_path_factory.mktemp("big")
    tokenizer = build_tokenizer()
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    llm = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        max_position_embeddings=512,
        **ids,
    )
    LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower = SiglipVisionConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=8,
        vision_use_head=False,
    )
    SiglipVisionModel(tower).save_pretrained(folder / "tower")
    size = {"height": SIDE, "width": SIDE}
    plain = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    plain.save_pretrained(folder / "tower")
    rows = []
    for number in range(16):
        (folder / f"{number}.png").write_bytes(tiny.png_bytes(number))
        image, text = {"type": "image", "image": f"{number}.png"}, "what is one?"
        content = [image, {"type": "text", "text": text}]
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "seven"},
        ]
        rows.append({"id": f"r{number}", "messages": turns})
    tiny.write_jsonl(folder / "data.jsonl", rows)
    return folder


def child(folder: Path, modes: str, what: str, **settings: Any) -> list[dict[str, Any]]:
    command = [sys.executable, str(CHILD), str(folder), modes, what, "mlp", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def estimates(big: Path) -> list[dict[str, Any]]:
    """Per mode: an estimate on top of a known baseline, and one that finds the baseline itself."""
    return child(big, ",".join(MODES), "estimate")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_estimates_are_within_a_fifth_of_what_training_takes(
    big: Path, estimates: list[dict[str, Any]]
) -> None:
    given, found = estimates[::2], estimates[1::2]
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(lambda mode: child(big, mode, "train")[0], MODES))
    for mode, estimate, own, actual in zip(MODES, given, found, measured, strict=True):
        whole = actual["peak"]
        assert estimate["total"] == pytest.approx(whole, rel=TOLERANCE), mode
        # without what the process holds anyway, and without the weights, whose size is known
        added = actual["peak"] - actual["baseline"]
        expected = estimate["total"] - actual["baseline"]
        assert expected == pytest.approx(added, rel=TOLERANCE), mode
        weights = estimate["parameters"]
        assert expected - weights == pytest.approx(added - weights, rel=TOLERANCE), mode
        if mode == MODES[0]:  # later ones share their process with earlier models
            assert own["total"] == pytest.approx(whole, rel=TOLERANCE), mode


def test_the_parts_of_an_estimate_follow_what_trains(estimates: list[dict[str, Any]]) -> None:
    frozen, _, lora, _, full, _ = (MemoryEstimate.model_validate(one) for one in estimates)
    assert frozen.gradients < lora.gradients < full.gradients
    assert frozen.activations < lora.activations < full.activations
    assert all(one.optimizer == 2 * one.gradients for one in (frozen, lora, full))
    assert full.gradients < full.parameters  # the tower is frozen


def test_the_replay_frees_after_the_last_use_and_adds_gradients() -> None:
    # kept: a (10), b (20), weight w (5) used with b, b again
    trace = MemoryTrace([(1, 10.0), (2, 20.0), (3, -5.0), (2, 20.0)], logits=0)
    assert trace.kept == 30
    assert trace.peak() == 30 + 2 * 20 + 5
    assert trace.peak(gradients_exist=True) == 35 + 2 * 20
    trace.scale(10)
    assert trace.kept == 300
    assert trace.peak() == 300 + 2 * 200 + 5


def test_a_weight_that_no_operation_kept_still_gets_a_gradient() -> None:
    assert MemoryTrace([(1, 10.0)], unseen=100).peak() == 100


def test_a_warning_names_what_to_change() -> None:
    values: dict[str, Any] = {
        "device": "cpu",
        "baseline": 1,
        "parameters": 1,
        "gradients": 1,
        "optimizer": 2,
        "activations": 1,
        "logits": 0,
        "phases": {"writing a checkpoint": 3 * 2**30},
        "total": 3 * 2**30,
        "rows": 8,
        "length": 100,
    }
    fits = MemoryEstimate(**values, available=4 * 2**30)
    assert fits.warning() is None
    text = fits.warning(processes=2)
    assert text is not None
    assert "2 processes of 3.00 GiB" in text
    assert "batch_size" in text
    assert MemoryEstimate(**values, available=None).warning() is None


def test_available_memory_respects_a_containers_limit(tmp_path: Path) -> None:
    assert _group_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("10\n")
    assert _group_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("100\n")
    assert _group_free(tmp_path) == 90
    found = available(torch.device("cpu"))
    assert found is not None
    assert found > resident() > 0


@pytest.mark.parametrize(("count", "text"), [(512, "512 B"), (3 * 2**30, "3.00 GiB")])
def test_bytes_are_readable(count: int, text: str) -> None:
    assert readable(count) == text
