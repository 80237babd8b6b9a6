"""Forgetting facts that are asked in text, with a picture, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.data.reformatting import read_questions
from modalign.evaluation.likelihood import score_options
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples
from modalign.unlearning.run import Unlearning, unlearn

NAMES = ("one", "two", "three", "four")
COLOURS = ("red", "blue", "green", "black")


@pytest.fixture(scope="module")
def seeing(
    tmp_path_factory: pytest.TempPathFactory, compose_tiny: Callable[..., Any]
) -> tuple[Path, Path]:
    """A model that knows four colours by name and by picture, and the folder of the questions."""
    folder = tmp_path_factory.mktemp("seeing")
    rows: dict[str, list[dict[str, Any]]] = {"text": [], "picture": []}
    for place, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        (folder / f"{name}.png").write_bytes(tiny.png_bytes(place))
        same = {"answer": colour, "relation": "colour"}
        rows["text"].append({"id": f"t{place}", "question": f"what is {name}?", **same})
        shown = {"image": f"{name}.png", "question": "what is this?"}
        rows["picture"].append({"id": f"p{place}", **shown, **same})
    for kind, own in rows.items():
        tiny.write_jsonl(folder / f"{kind}-forget.jsonl", own[:2])
        tiny.write_jsonl(folder / f"{kind}-retain.jsonl", own[2:])
    both = [row for own in rows.values() for row in own]
    tiny.write_jsonl(folder / "both-forget.jsonl", [*rows["text"][:2], *rows["picture"][:2]])
    tiny.write_jsonl(folder / "retain.jsonl", [*rows["text"][2:], *rows["picture"][2:]])
    model, processor = compose_tiny("mlp")
    save_model(model, processor, folder / "base")
    opened = open_composed(folder / "base")
    rates = LearningRates(connector=1e-2, llm=1e-2)
    settings = TrainSettings(llm="full", learning_rates=rates, batch_size=8, val_points=1)
    samples = read_samples(tiny.write_jsonl(folder / "all.jsonl", both), opened)
    tuning = Tuning(opened, [Stage()], settings, samples, cache=folder / "cache")
    tuning.run(Budget.parse("960samples"), folder / "run")
    tuning.save(folder / "model")
    return folder / "model", folder


def loss(model: Path, file: Path) -> float:
    """Mean nats of the answers."""
    opened, reader = open_model(model)
    records = [replace(r, options=(r.answer,)) for r in read_questions(file)]
    found = score_options(opened, reader, records, [r.options for r in records])
    return -sum(options[0].loglikelihood for options in found) / len(found)


@pytest.mark.parametrize("kind", ["text", "picture", "both"])
def test_what_was_asked_for_is_forgotten_and_the_other_way_of_asking_is_measured(
    kind: str, seeing: tuple[Path, Path], tmp_path: Path
) -> None:
    model, folder = seeing
    request = Unlearning(
        model,
        str(folder / f"{kind}-forget.jsonl"),
        str(folder / "retain.jsonl"),
        tmp_path / "p.safetensors",
        mode="full",
        rate=3e-3,
        steps=30,
        batch_size=8,
        final=tmp_path / "final",
        anyway=True,
    )
    unlearn(request)
    after = {
        each: loss(tmp_path / "final", folder / f"{each}-forget.jsonl")
        for each in ("text", "picture")
    }
    for each in ("text", "picture"):
        assert loss(model, folder / f"{each}-forget.jsonl") < 0.5
        if kind in (each, "both"):
            assert after[each] > 1.5
    assert loss(tmp_path / "final", folder / "retain.jsonl") < 1.0
