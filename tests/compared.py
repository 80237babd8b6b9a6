"""One small comparison that many tests look at: three methods, trained twice each and then where it decides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from modalign.comparison.compare import compare
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import Job, JobResult
from modalign.comparison.prepared import Prepared, prepare
from modalign.comparison.results import Comparison
from modalign.starter.build import WEIGHTS, write_data

METHODS = ["linear", "qformer", "gated_cross_attention"]
TEXT_ROWS = 4


@dataclass
class Compared:
    """A finished comparison and what it was made from."""

    config_file: Path
    out: Path
    data: Path
    cache: Path
    comparison: Comparison
    encoded: list[int] = field(default_factory=list)

    @property
    def config(self) -> CompareConfig:
        return load_config(self.config_file)[0]

    def prepared(self, out: Path | None = None) -> Prepared:
        return prepare(self.config, out or self.out, self.cache)


def results(prepared: Prepared) -> list[JobResult]:
    """Finished jobs, all first trainings before the second ones."""
    found = [
        Job(prepared.out, method.name, seed).result()
        for seed in range(9)
        for method in prepared.methods
    ]
    return [result for result in found if result is not None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every filling of the feature cache write down how many media it encoded."""
    import modalign.comparison.prepared as module

    encoded: list[int] = []
    real = module.fill_store

    def fill(*args: Any, **kwargs: Any) -> int:
        encoded.append(real(*args, **kwargs))
        return encoded[-1]

    monkeypatch.setattr(module, "fill_store", fill)
    return encoded


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory, empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MODALIGN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few scenes on disk; the evaluation data has text-only questions too."""
    folder = tmp_path_factory.mktemp("scenes")
    write_data(folder, {"train": 80, "val": 24, "eval": 30})
    texts = [row for row in read_rows(folder / "train.jsonl") if row["skill"] == "text"]
    texts = [{**row, "id": f"eval-{row['id']}"} for row in texts[:TEXT_ROWS]]
    write_rows(folder / "eval.jsonl", [*read_rows(folder / "eval.jsonl"), *texts])
    return folder


@pytest.fixture(scope="session")
def small_config(
    scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Changed fields -> a configuration file of a comparison of a few seconds."""

    def make(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "parts": {
                "llm": str(WEIGHTS / "language"),
                "encoder": {"image": str(WEIGHTS / "vision")},
                "feature_layer": -1,
                "image_size": 48,
                "patch_size": 8,
            },
            "data": {
                name: str(scenes_folder / f"{name}.jsonl") for name in ("train", "val", "eval")
            },
            "methods": METHODS,
            "budget": "480samples",
            "total": "7trainings",
            "examples": 2,
            "jobs": 2,
            "training": {
                "llm": "lora",
                "learning_rates": {"connector": 2e-3, "llm": 1e-3, "encoder": 1e-4},
                "batch_size": 5,
                "checkpoint_seconds": 0.2,
                "val_points": 2,
            },
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        path = tmp_path_factory.mktemp("config") / "compare.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return make


@pytest.fixture(scope="session")
def compared(
    small_config: Callable[..., Path],
    scenes_folder: Path,
    small_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Compared:
    """The comparison all tests share."""
    out, file = tmp_path_factory.mktemp("compared") / "out", small_config()
    with pytest.MonkeyPatch.context() as patch:
        encoded = counted(patch)
        comparison = compare(file, out=out, cache=small_cache)
    return Compared(file, out, scenes_folder, small_cache, comparison, encoded)


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_cache: Path
) -> Callable[..., tuple[int, str, str]]:
    """Arguments -> exit code, standard output, error stream of the command line."""
    from modalign.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalign", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run
