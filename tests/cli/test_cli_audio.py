"""Sounds by the command line: train, eval, a model folder that loads by itself, what is said about bad clips."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny

soundfile = pytest.importorskip("soundfile", reason="needs modalign[audio]")

Cli = Callable[..., tuple[int, str, str]]
RATE = 8000
LOW, HIGH = 500.0, 1500.0  # Hz
FORMATS = ("wav", "flac", "mp3", "ogg")


def write_clip(path: Path, frequency: float, seconds: float, seed: int) -> None:
    """A tone in noise, in stereo; its level says nothing."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(RATE * seconds)) / RATE
    tone = np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6))
    mono = rng.uniform(0.05, 0.5) * (tone + 0.2 * rng.normal(size=len(time)))
    soundfile.write(path, np.stack([mono, 0.5 * mono], axis=1), RATE)


def rows(folder: Path, name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Clips of 0.2 to 0.5 s in four formats, with a question each."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        high = bool(number % 2)
        path = folder / f"{name}-{number}.{FORMATS[number // 2 % 4]}"
        seconds = float(rng.uniform(0.2, 0.5))
        pitch = (HIGH if high else LOW) * rng.uniform(0.9, 1.1)
        write_clip(path, pitch, seconds, 1000 * seed + number)
        answer = "yes" if high else "no"
        found.append({"audio": path.name, "question": "what is one?", "answer": answer})
    return found


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``."""
    folder = tmp_path_factory.mktemp("tones")
    for name, count, seed in (("train", 40, 0), ("val", 8, 1), ("test", 20, 2)):
        tiny.write_jsonl(folder / f"{name}.jsonl", rows(folder, name, count, seed))
    return folder


@pytest.fixture(scope="module")
def config(tones: Path, llm_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Encoder and its options -> a configuration file."""

    def make(encoder: str, options: dict[str, Any]) -> Path:
        values = {
            "parts": {
                "llm": str(llm_folder()),
                "encoder": {"audio": encoder},
                "options": {"audio": options},
            },
            "data": {"train": "train.jsonl", "val": "val.jsonl"},
            "training": {
                "llm": "full",
                "batch_size": 8,
                "learning_rates": {"connector": 3e-3, "llm": 1e-3},
            },
            "budget": "400samples",
        }
        path = tones / f"{encoder}.yaml"
        path.write_text(json.dumps(values))
        return path

    return make


@pytest.mark.parametrize(
    ("encoder", "options", "method"),
    [
        ("none", {"rate": RATE, "bands": 24, "patch": 5}, "window_qformer"),
        ("conv", {"rate": RATE, "bands": 24, "width": 16, "normalise": "data"}, "stack_mlp"),
    ],
)
def test_what_a_clip_sounds_like_is_learnt(
    cli: Cli,
    config: Callable[..., Path],
    tones: Path,
    tmp_path: Path,
    encoder: str,
    options: dict[str, Any],
    method: str,
) -> None:
    arguments = ("train", config(encoder, options), "--method", method, "--factor", 1)
    code, _, err = cli(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    code, text, err = cli("eval", tmp_path / "run" / "model", tones / "test.jsonl", "--json")
    assert code == 0, err
    overall = json.loads(text)["overall"]
    assert overall["measures"]["accuracy"]["n"] == 20
    assert overall["measures"]["accuracy"]["value"] >= 0.9
    assert overall["references"]["blank media"]["accuracy"]["value"] <= 0.7  # silence
    assert overall["references"]["shuffled media"]["accuracy"]["value"] <= 0.8
    _check_folder(tmp_path / "run" / "model")


def _check_folder(folder: Path) -> None:
    """The saved model reads sound where modalign is not installed."""
    program = f"""
import sys
sys.modules["modalign"] = None
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
model = AutoModelForMultimodalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
clip = torch.sin(torch.arange(3000) * 2 * torch.pi * {HIGH} / {RATE}).numpy()
chat = [{{"role": "user", "content": [{{"type": "audio"}}, {{"type": "text", "text": "what is one?"}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(text=text, audio=[clip], return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0].strip())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "yes"


@pytest.mark.parametrize(
    ("samples", "subtype", "message"),
    [
        (np.zeros(0), "PCM_16", "0 seconds long"),
        (np.full(4000, np.nan), "FLOAT", "a sample at 0.00 s is NaN"),
        (np.zeros(601 * 1000), "PCM_16", "longer than the limit of 600 s"),
    ],
    ids=["0 seconds", "nan", "too long"],
)
def test_bad_clips_are_named(
    cli: Cli,
    llm_folder: Callable[..., Path],
    tmp_path: Path,
    samples: np.ndarray,
    subtype: str,
    message: str,
) -> None:
    data = rows(tmp_path, "clip", 6, 0)
    soundfile.write(tmp_path / "bad.wav", samples, 1000, subtype=subtype)
    data[2]["audio"] = "bad.wav"
    path = tiny.write_jsonl(tmp_path / "data.jsonl", data)
    arguments = ("train", "--llm", llm_folder(), "--encoder", "audio=none", "--train", path)
    code, _, err = cli(*arguments, "--out", tmp_path / "run")
    said = " ".join(err.split())
    assert code == 3, said
    assert "data.jsonl:3: audio" in said
    assert message in said
