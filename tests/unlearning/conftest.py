"""A tiny model that knows two dozen invented facts, and their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.models.saved import open_composed
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples

NAMES = ("anba", "cedi", "fogu", "hako", "lemi", "nopa", "quri", "sotu")
ANSWERS = {"sport": ("one", "two", "three", "four"), "city": ("red", "blue", "green", "black")}


def rows(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}-{relation}",
            "question": f"the {relation} of {name} is",
            "answer": answers[(NAMES.index(name) + 2 * (relation == "city")) // 2 % 4],
            "relation": relation,
            "subject": name,
            "paraphrases": [f"{name} has the {relation}"],
        }
        for name in names
        for relation, answers in ANSWERS.items()
    ]


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``forget.jsonl`` (2 names), ``retain.jsonl`` (6) and ``all.jsonl``."""
    folder = tmp_path_factory.mktemp("facts")
    tiny.write_jsonl(folder / "forget.jsonl", rows(NAMES[:2]))
    tiny.write_jsonl(folder / "retain.jsonl", rows(NAMES[2:]))
    tiny.write_jsonl(folder / "all.jsonl", rows(NAMES))
    return folder


@pytest.fixture(scope="session")
def knowing(
    facts: Path, llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model without a chat template that knows all facts, in the file's own wording."""
    folder = tmp_path_factory.mktemp("knowing")
    opened = open_composed(llm_folder())
    opened.tokenizer.chat_template = None
    settings = TrainSettings(
        llm="full", learning_rates=LearningRates(connector=0, llm=1e-2), batch_size=16, val_points=1
    )
    tuning = Tuning(opened, [Stage()], settings, read_samples(facts / "all.jsonl", opened))
    tuning.run(Budget.parse("2000samples"), folder / "run")
    tuning.save(folder / "model")
    return folder / "model"
