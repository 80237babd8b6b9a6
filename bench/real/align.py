"""Step ``align``: join encoders to SmolLM2, compare, then ask, judge, export and serve the winner.

Each cell is one ``modalign compare`` by the command line, with its defaults except for fewer tokens per medium
and a smaller budget: a step of eight pictures through 135 M parameters takes seconds on one core.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from openai import OpenAI

from bench.spoken_digits import QUESTION, SHARED, TEST_INDEX, WORDS, modalign, recordings
from bench.two_servers import messages_of
from modalign.data.readers import read_records
from modalign.files import write_atomically

Rows = list[dict[str, Any]]
PERCEIVERS = "resampler[num_tokens=16],qformer_no_stage_one[num_tokens=16]"
ON_GRIDS = f"avgpool_mlp[num_tokens=16],clipcap_lowrank,{PERCEIVERS}"
ON_SETS = f"pool_linear,stack_mlp,{PERCEIVERS}"


@dataclass(frozen=True)
class Task:
    """Data to train on and to judge by.

    Attributes:
        modality: of its media.
        encoder: a model of the step ``models``.
        methods: four, from two families.
        rows: (number to judge by) -> rows to train on, and rows to judge by; no medium is in both.
    """

    modality: str
    encoder: str
    methods: str
    rows: Callable[[int], tuple[Rows, Rows]]


def grocery(count: int) -> tuple[Rows, Rows]:
    """Read photographs taken in shops, to be told into three kinds."""
    folder = SHARED / "data" / "grocery"
    items = {item["item_id"]: item for item in json.loads((folder / "items.json").read_text())}
    found: dict[str, Rows] = {"train": [], "test": []}
    for photo in json.loads((folder / "photos.json").read_text()):
        kind = items[photo["item_id"]]["category"].lower()
        found[photo["split"]].append(
            {
                "image": str(folder / photo["image"]),
                "question": "Is this fruit, vegetables or packages?",
                "answer": kind,
            }
        )
    return found["train"], Random(0).sample(found["test"], min(count, len(found["test"])))


def easy_vqa(count: int) -> tuple[Rows, Rows]:
    """Read questions about one coloured shape; every sixth picture is kept to judge by."""
    folder = SHARED / "data" / "easy_vqa"
    train, test = [], []
    for row in json.loads((folder / "questions.json").read_text()):
        number = int(re.findall(r"\d+", row["image"])[0])
        (train if number % 6 else test).append({**row, "image": str(folder / row["image"])})
    return train, Random(0).sample(test, count)


def spoken_digits(count: int) -> tuple[Rows, Rows]:
    """Read recordings of ten words, with the official test split."""
    train, test = [], []
    for each in recordings(SHARED / "data" / "spoken_digits"):
        row = {"audio": str(each.path), "question": QUESTION, "answer": WORDS[each.digit]}
        (test if each.index in TEST_INDEX else train).append(row)
    return train, Random(0).sample(test, min(count, len(test)))


TASKS = {
    "grocery": Task("image", "dinov2-small", ON_GRIDS, grocery),
    "easy_vqa": Task("image", "dinov2-small", ON_GRIDS, easy_vqa),
    "spoken_digits": Task("audio", "whisper-tiny.en", ON_SETS, spoken_digits),
}

CELLS = {f"{name}-{mode}": (name, mode) for name in TASKS for mode in ("frozen", "lora")}


@dataclass(frozen=True)
class Size:
    """How much a cell costs: the budget of each training, trainings per method, records to judge by."""

    budget: str
    seeds: int
    judged: int


SIZES = {True: Size("96samples", 1, 40), False: Size("512samples", 2, 120)}


def run(
    out: Path, names: list[str], quick: bool, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Compare and use what is missing; return the tables' rows by task and by what trains."""
    found = {}
    for name, mode in (CELLS[name] for name in names):
        folder = out / "align" / f"{name}-{mode}{'-quick' if quick else ''}"
        kept = folder / "found.json"
        if not kept.exists():
            say(f"{name}, language model {mode}: comparing")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(_cell(out, folder, name, mode, quick, say)).encode())
        found[f"{name}, {mode}"] = json.loads(kept.read_text())
    return found


def _cell(
    out: Path, folder: Path, name: str, mode: str, quick: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    task, size = TASKS[name], SIZES[quick]
    train, test = task.rows(size.judged)
    files = {"train": train, "eval": test}
    for part, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(folder / f"{part}.jsonl", text.encode())
    models = out / "models"
    joined = (
        *("--train", folder / "train.jsonl", "--eval", folder / "eval.jsonl"),
        *("--llm", models / "smollm2", "--encoder", f"{task.modality}={models / task.encoder}"),
        *("--train-llm", mode, "--methods", task.methods, "--budget", size.budget),
        *("--set", "training.batch_size=8"),
    )
    foretold = modalign("doctor", *joined)
    began = time.monotonic()
    resume = ["--resume"] if (folder / "run").exists() else []
    compared = modalign(
        "compare", *joined, "--seeds", str(size.seeds), "--out", folder / "run", *resume
    )
    seconds = time.monotonic() - began
    say(f"{name}, language model {mode}: using {compared['recommendation']['best']}")
    memory = {each["name"]: (each["memory"] or {}).get("total") for each in foretold["methods"]}
    return {
        "seconds": seconds,
        "recommended": compared["recommendation"]["method"],
        "best": compared["recommendation"]["best"],
        "methods": [
            {key: each[key] for key in ("name", "accuracy_interval", "tokens", "peak_memory")}
            | {"foretold": memory.get(each["name"])}
            for each in compared["methods"]
            if each["status"] == "ok"
        ],
        "references": [
            {"name": each["name"], "accuracy_interval": each["accuracy"]}
            for each in compared["references"]
        ],
        "used": _use(folder, name, test[0], task),
    }


def _use(folder: Path, name: str, row: dict[str, Any], task: Task) -> dict[str, str]:
    """Ask, judge, export and serve what was saved; return what each command said."""
    model = folder / "run" / "best"
    medium, question = row[task.modality], row["question"]
    asked = _line("ask", model, f"--{task.modality}", medium, question)
    judged = modalign("eval", model, folder / "eval.jsonl", "--limit", "20")
    right = judged["overall"]["measures"]["accuracy"]
    exported = _line("export", model, "-o", folder / "exported", "--overwrite", "--json")
    with served(model) as address:
        client = OpenAI(base_url=address, api_key="none")
        record = read_records(folder / "eval.jsonl").records[0]
        messages: Any = (
            messages_of(record.messages[0]) if task.modality == "image" else _sound(record)
        )
        name = client.models.list().data[0].id
        answer = client.chat.completions.create(model=name, messages=messages, temperature=0)
    return {
        "wanted": row["answer"],
        "ask": asked,
        "serve": str(answer.choices[0].message.content),
        "eval": f"{right['value']:.0%} of {right['n']}",
        "export": str(json.loads(exported)["loads_as"]) if exported.startswith("{") else exported,
    }


def _sound(record: Any) -> list[dict[str, Any]]:
    import base64

    parts: list[dict[str, Any]] = []
    for part in record.messages[0].parts:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            data = base64.b64encode(part.read()).decode()
            parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return [{"role": "user", "content": parts}]


def _line(*arguments: str | Path) -> str:
    """Run a command; return what it printed, or the last line of its error."""
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"refused: {done.stderr.strip().splitlines()[-1]}"
    return done.stdout.strip()


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model until the block ends; yield the server's address."""
    command = [sys.executable, "-m", "modalign", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return accuracies and memory of every cell, and what its model said, as Markdown."""
    lines = [
        "| data, language model | method | tokens | right, % | memory, GiB: foretold, peak |",
        "|---|---|---|---|---|",
    ]
    for cell, each in found.items():
        for row in [*each["methods"], *each["references"]]:
            right = row["accuracy_interval"]
            words = f"{100 * right['value']:.0f} ({100 * right['low']:.0f} to {100 * right['high']:.0f})"
            known = [row.get("foretold"), row.get("peak_memory")]
            memory = ", ".join(f"{size / 2**30:.2f}" for size in known if size)
            mark = "**" if row["name"] == each["recommended"] else ""
            lines.append(
                f"| {cell} | {mark}{row['name']}{mark} | {row.get('tokens', '')} | {words} | {memory} |"
            )
    lines += [
        "",
        "| data, language model | recommended | asked for | `ask` | `serve` | `eval` | `export` | s |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for cell, each in found.items():
        used = each["used"]
        lines.append(
            f"| {cell} | {each['recommended'] or 'none'} | {used['wanted']} | {used['ask']} | {used['serve']} | "
            f"{used['eval']} | {used['export']} | {each['seconds']:.0f} |"
        )
    return "\n".join(lines)
