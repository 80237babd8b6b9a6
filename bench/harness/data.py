"""The same questions for modalign and for both harnesses, from the starter's scenes.

Pictures: single questions of the starter's evaluation data. Choices: questions without a picture, from its
training data (the only ones it has), with options drawn from the answers to the same kind of question. The tools'
scores are compared, not the model's quality, so questions seen in training will do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.files import write_atomically
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.starter.build import starter

PAIRS = (("yes", "no"), ("even", "odd"))
OPTIONS = 4  # per question


@dataclass(frozen=True)
class Files:
    """The files of questions, each kind for modalign and for a harness."""

    scenes: Path
    scenes_lmms: Path
    choices: Path
    choices_lm: Path


def write_questions(folder: Path, model: Path, count: int, seed: int = 0) -> Files:
    """Write ``count`` questions of either kind; both files of a pair have the same order."""
    found, rng = starter(), random.Random(seed)
    scenes = [_scene(row) for row in rng.sample(_rows(found.eval), count)]
    texts = [row for row in _rows(found.train) if row["skill"] == "text"]
    singles = [row for row in texts if len(row["messages"]) == 2]
    asked = {_question(row): row["messages"][-1]["content"] for row in singles}
    choices = choose(asked, count, rng)
    _, reader = open_model(model)
    tokenizer = tokenizer_of(reader)
    rendered = [render(tokenizer, row) for row in choices]
    files = Files(
        *(folder / f"{name}.jsonl" for name in ("scenes", "scenes.lmms", "choices", "choices.lm"))
    )
    _write(files.scenes, scenes)
    _write(files.scenes_lmms, scenes)
    _write(files.choices, choices)
    _write(files.choices_lm, rendered)
    return files


def choose(asked: dict[str, str], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Choose questions with options: both of a pair, or else the answer among three others."""
    numbers = sorted({a for a in asked.values() if not any(a in pair for pair in PAIRS)})
    rows = []
    for place, question in enumerate(rng.sample(sorted(asked), min(count, len(asked)))):
        answer = asked[question]
        options = next((list(pair) for pair in PAIRS if answer in pair), [])
        if not options:
            others = [number for number in numbers if number != answer]
            options = [answer, *rng.sample(others, OPTIONS - 1)]
        rng.shuffle(options)
        rows.append(
            {"id": f"choice-{place}", "question": question, "answer": answer, "options": options}
        )
    return rows


def render(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Render a row as lm-evaluation-harness scores it: prompt and continuations as plain text."""
    asked = [{"role": "user", "content": row["question"]}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    choices = []
    for option in row["options"]:
        talk = [*asked, {"role": "assistant", "content": option}]
        whole = tokenizer.apply_chat_template(talk, tokenize=False)
        added = whole[len(prompt) :]
        end = tokenizer.eos_token
        choices.append(added[: added.index(end) + len(end)] if end and end in added else added)
    gold = row["options"].index(row["answer"])
    return {"id": row["id"], "prompt": prompt, "choices": choices, "gold": gold}


def _scene(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "image": row["messages"][0]["content"][0]["image"],
        "question": _question(row),
        "answer": row["messages"][1]["content"],
        "skill": row["skill"],
    }


def _question(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"][-1]["text"])


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a file, with pictures by their full path."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for part in row["messages"][0]["content"]:
            if part["type"] == "image":
                part["image"] = str(file.parent / part["image"])
    return rows


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
