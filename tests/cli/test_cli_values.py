"""Tables, series and vectors by the command line: train, eval, and what is said about bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny

Cli = Callable[..., tuple[int, str, str]]


def rows(modality: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Signals of two classes: one sign or the other of what carries the answer, with gaps elsewhere."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        sign = 1 if number % 2 else -1
        noise = rng.normal(size=(5 + number % 3, 2)).round(3)
        if modality == "table":
            kind = "small" if sign < 0 else "large"
            value: Any = {"kind": kind, "x": sign + noise[0, 0] / 4, "y": None, "z": noise[0, 1]}
        elif modality == "series":
            noise[:, 0] = sign * np.arange(len(noise))
            value = [[step, None if number % 5 == 0 else other] for step, other in noise.tolist()]
        else:
            value = (noise / 4 + [sign, 0]).tolist()
        question = f"what is {'one' if number % 3 else 'two'}?"
        found.append({modality: value, "question": question, "answer": "yes" if sign > 0 else "no"})
    return found


@pytest.mark.parametrize(
    ("modality", "encoder", "options"),
    [
        ("table", "none", {}),
        ("table", "columns", {"width": 16}),
        ("series", "none", {"patch": 3}),
        ("series", "conv", {"patch": 3, "width": 16}),
        ("vectors", "none", {"standardise": True}),
    ],
)
def test_what_a_signal_says_is_learnt(
    cli: Cli,
    llm_folder: Callable[..., Path],
    tmp_path: Path,
    modality: str,
    encoder: str,
    options: dict[str, Any],
) -> None:
    for name, count, seed in (("train", 40, 0), ("val", 8, 1), ("test", 20, 2)):
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", rows(modality, count, seed))
    config = {
        "parts": {
            "llm": str(llm_folder()),
            "encoder": {modality: encoder},
            "options": {modality: options},
        },
        "data": {"train": "train.jsonl", "val": "val.jsonl"},
        "training": {
            "llm": "full",
            "batch_size": 8,
            "learning_rates": {"connector": 3e-3, "llm": 3e-3, "encoder": 3e-3},
        },
        "budget": "480samples",
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    out = tmp_path / "run"
    code, _, err = cli(
        "train", tmp_path / "config.yaml", "--method", "linear", "--factor", 1, "--out", out
    )
    assert code == 0, err
    code, text, err = cli("eval", out / "model", tmp_path / "test.jsonl", "--json")
    assert code == 0, err
    overall = json.loads(text)["overall"]
    assert overall["measures"]["accuracy"]["n"] == 20
    assert overall["measures"]["accuracy"]["value"] >= 0.9
    assert overall["references"]["blank media"]["accuracy"]["value"] <= 0.7
    assert overall["references"]["shuffled media"]["accuracy"]["value"] <= 0.8
    if modality != "table":
        too_long_is_broken(cli, out / "model", tmp_path / "test.jsonl", modality)


def too_long_is_broken(cli: Cli, model: Path, test: Path, modality: str) -> None:
    """A signal longer than the encoder takes is named before any answer, or skipped under the quota."""
    data = [json.loads(line) for line in test.read_text().splitlines()]
    data[4] = {**data[4], modality: [[1.0, 2.0]] * 50}
    path = tiny.write_jsonl(test.with_name("long.jsonl"), data)
    code, _, err = cli("eval", model, path)
    assert code == 3
    assert "long.jsonl:5" in err
    assert "but the model takes at most" in err.replace("\n", " ")
    code, text, err = cli("eval", model, path, "--skip-broken", "10%", "--json")
    assert code == 0, err
    assert json.loads(text)["overall"]["measures"]["accuracy"]["n"] == 19


@pytest.mark.parametrize(
    ("modality", "bad", "message"),
    [
        ("vectors", [1.0, 2.0, 3.0], "data.jsonl:3: vectors: width 3, where 6 of 7 have 2"),
        ("vectors", [1.0, float("nan")], "data.jsonl:3: not usable JSON (NaN is not a JSON number"),
        ("series", [None, None], "data.jsonl:3: series: every value is missing"),
        ("series", "gone.csv", "gone.csv: the file does not exist"),
        ("table", {"x": [1]}, "data.jsonl:3: table: column 'x' holds a list"),
        ("table", "data.jsonl#1", "name a row of a file"),
    ],
)
def test_bad_rows_are_named(
    cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path, modality: str, bad: Any, message: str
) -> None:
    data = rows(modality, 7, 0)
    data[2] = {**data[2], modality: bad}
    path = tiny.write_jsonl(tmp_path / "data.jsonl", data)
    arguments = ("train", "--llm", llm_folder(), "--encoder", f"{modality}=none", "--train", path)
    code, _, err = cli(*arguments, "--out", tmp_path / "run")
    assert code == 3
    assert message in err.replace("\n", "")
