"""A model cut by depth and taught by its parent, compared with one of its size from scratch, on stories260k.

One of the parent's five layers is removed (the least influential, the last, or the one that even spacing leaves
out). Recovery takes 50 steps of 6 texts on 128 texts that the parent wrote, by KL to the parent or by
cross-entropy, under three seeds. The same layers with random weights get the same steps, or twenty times as many.

    python -m bench.depth [--out runs/depth]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from modalign.cli.console import quiet_libraries
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.distill import distill
from modalign.numbers import words
from modalign.pages.markdown import table
from modalign.training.settings import LearningRates, TrainSettings

PARENT = Path(__file__).parents[2] / "shared" / "models" / "stories260k"
LENGTH, STEPS, BATCH, SEEDS, LAYERS = 160, 50, 6, 3, 4
RULES = ("influence", "first", "every_other")


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Write 128 texts to train on and 64 to judge by, sampled from the parent at temperature 1."""
    files = folder / "train.jsonl", folder / "eval.jsonl"
    if all(file.exists() for file in files):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(PARENT).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(PARENT)
    torch.manual_seed(0)
    start = torch.tensor([[tokenizer.bos_token_id]] * 32)
    texts: list[str] = []
    while len(texts) < 192:
        found = model.generate(start, max_length=256, do_sample=True, top_k=0, pad_token_id=0)
        texts += tokenizer.batch_decode(found, skip_special_tokens=True)
    for file, own in zip(files, (texts[:128], texts[128:192]), strict=True):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    return files


def write_scratch(folder: Path) -> Path:
    """Write a model of the cut one's shape with random weights."""
    if not folder.exists():
        config = AutoConfig.from_pretrained(PARENT)
        config.num_hidden_layers = LAYERS
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(PARENT).save_pretrained(folder)
    return folder


def run(
    out: Path, name: str, steps: int = STEPS, rate: float = 1e-3, **student: Any
) -> list[list[str]]:
    """Train one kind of student both ways; return its rows."""
    train, held = write_texts(out)
    rates = LearningRates(llm=rate)
    config = DistillConfig(
        teacher=str(PARENT),
        data=str(train),
        evaluation=str(held),
        schedule="after_pruning",
        against=["cross_entropy"],
        budget=f"{steps * BATCH}samples",
        training=TrainSettings(llm="full", learning_rates=rates, batch_size=BATCH, device="cpu"),
        seeds=SEEDS,
        length=LENGTH,
        **student,
    )
    found = distill(config, out / name, resume=True)
    parent, before, *trained = found.rows
    return [
        [name.replace("-", " "), str(steps), row.title, words.in_unit(row.nll.value - parent.nll.value, ""),
         words.ends(row.nll), f"{row.seconds or 0:.0f}"]
        for row in (before, *trained)
    ]  # fmt: skip


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/depth"))
    out = parser.parse_args().out
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    for rule in RULES:
        rows += run(out, f"cut-{rule}", student_layers=LAYERS, layers_by=rule)
    scratch = str(write_scratch(out / "random"))
    rows += run(out, "from-scratch", student=scratch)
    rows += run(out, "from-scratch-longer", 20 * STEPS, student=scratch)
    headings = ("student", "steps", "trained by", "nats above the parent", "loss (95 %)", "seconds")
    print(table(headings, rows))


if __name__ == "__main__":
    main()
