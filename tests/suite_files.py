"""Small files of the text suite's published forms, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import tiny


def truth_rows(count: int = 6) -> list[dict[str, Any]]:
    """Questions whose true option stands first, as in the published file."""
    return [
        {
            "question": f"what is {number}?",
            "mc1_targets": {f"it is {number}": 1, f"it is not {number}": 0, "a very long falsehood": 0},
            "mc2_targets": {f"it is {number}": 1, f"{number}": 1, f"it is not {number}": 0},
        }
        for number in range(count)
    ]  # fmt: skip


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_suite(folder: Path) -> Path:
    """A folder with every part."""
    for name in ("truthfulqa", "ethics", "gsm8k", "text_domains"):
        (folder / name).mkdir(parents=True)
    (folder / "truthfulqa" / "mc_task.json").write_text(json.dumps(truth_rows()))
    inside = folder / "ethics"
    write_csv(
        inside / "commonsense.csv",
        [["label", "input"], ["1", "I broke it."], ["0", "I did not break it."], ["0", "I ran."]],
    )
    scenes = [("0", "run", "but no"), ("1", "run", "but yes"), ("1", "eat", "a"), ("0", "eat", "b")]
    write_csv(inside / "deontology.csv", [["label", "scenario", "excuse"], *map(list, scenes)])
    blocks = [[str(n % 2), f"I usually run in {'ab'[n // 4]} because {n}"] for n in range(8)]
    write_csv(inside / "justice.csv", [["label", "scenario"], *blocks])
    traits = [[str(int(n % 5 == 0)), f"she ran {n // 5} [SEP] trait {n}"] for n in range(10)]
    write_csv(inside / "virtue.csv", [["label", "scenario"], *traits])
    write_csv(inside / "utilitarianism.csv", [[f"I won {n}", f"I lost {n}"] for n in range(4)])
    for name, first in (("gsm8k_test.jsonl", 0), ("gsm8k_train.jsonl", 10)):
        rows = [
            {"question": f"{n} and 1?", "answer": f"{n}+1\n#### {n + 1}"}
            for n in range(first, first + 4)
        ]
        tiny.write_jsonl(folder / "gsm8k" / name, rows)  # fmt: skip
    (folder / "text_domains" / "words.txt").write_text("the top left is a three. " * 100)
    tiny.write_jsonl(
        folder / "text_domains" / "tasks.jsonl",
        [{"instruction": f"count to {n}", "input": "", "output": "one two"} for n in range(3)],
    )
    return folder
