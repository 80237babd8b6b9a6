"""Tool chains as methods: their names, their text in the sequence, what they are charged for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from modalign.comparison.compare import compare
from modalign.data.records import Media
from modalign.data.supervision import tokenise
from modalign.errors import UsageError
from modalign.evaluation.generation import answer
from modalign.models.open import open_model
from modalign.models.tool_text import tool_entries
from modalign.tools.registry import parse_chain
from modalign.training.methods import resolve_method, resolve_methods
from modalign.training.settings import Stage

CHAIN = {
    "tools": [{"kind": "callable", "target": "seen_by_tools:parity", "trusted": True}],
    "budget": 8,
}


def test_names() -> None:
    frozen, tuned = resolve_methods("tool", chains=["ocr"])
    assert (frozen.name, tuned.name) == ("tool:ocr", "tool:ocr:full")
    assert (frozen.family, frozen.facts.enters) == ("tool", "text")
    assert not frozen.trains("full")
    assert tuned.trains("frozen")
    assert resolve_method("tool:my.yaml:lora").stages[0].llm == "lora"
    assert resolve_method("tool:my.yaml:lora").tools.chain == "my.yaml"  # type: ignore[union-attr]
    halves = resolve_method("tool:ocr", [Stage(share=2), Stage(name="b", share=6)]).stages
    assert [stage.share for stage in halves] == [0.25, 0.75]
    assert {m.family for m in resolve_methods("all", chains=["ocr"])} == {
        "converter",
        "perceiver",
        "tool",
    }
    with pytest.raises(UsageError, match="has no tool chain"):
        resolve_method("tool:")


def test_the_text_takes_the_place_of_the_medium(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    chain, entries = tool_entries(parse_chain(CHAIN, "parity"), tokenizer, ["image"])
    record = tiny.record(["see ", tiny.image(0), " what?"], "yes")
    sample = tokenise(record, tokenizer)
    entry = entries["image"]
    (own,) = entry.stand_ins(sample.media)
    assert tokenizer.decode(own) == chain.text(sample.media[0])
    ids, labels = sample.expanded([entry.token_id], [own])
    place = int(np.flatnonzero(sample.ids == entry.token_id)[0])
    assert ids[place : place + len(own)].tolist() == own.tolist()
    assert (labels[place : place + len(own)] == -100).all()
    assert entry.fetch(sample.media) == {}


def write_rows(folder: Path, name: str, count: int) -> str:
    rows = []
    for number in range(count):
        media = tiny.image(number)
        path = folder / f"{name}-{number}.png"
        path.write_bytes(media.read())
        answer = "yes" if number % 2 else "no"
        rows.append({"image": path.name, "question": "is it odd?", "answer": answer})
        rows[-1]["id"] = f"{name}-{number}"
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def test_a_comparison_with_tools_saves_a_model_that_asks_them(
    tmp_path: Path, llm_folder: Any, tower_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    found = compare(
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        parts={
            "llm": str(llm_folder("llama")),
            "encoder": {"image": str(tower_folder("siglip"))},
            "feature_layer": -1,
            "tools": {"parity": CHAIN},
        },
        data={"train": write_rows(tmp_path, "train", 24), "eval": write_rows(tmp_path, "eval", 8)},
        methods=["tool", "text_only:full", "linear"],
        budget="96samples",
        seeds=1,
        examples=2,
        training={"llm": "frozen", "device": "cpu", "batch_size": 8},
    )
    rows = {method.name: method for method in found.methods}
    assert {row.status for row in rows.values()} == {"ok"}
    blind = rows["text_only:full"]
    assert (blind.tokens, blind.image_gain_shuffled.value, blind.mir) == (0, 0.0, None)  # type: ignore[union-attr]
    assert found.recommendation.saved != "text_only:full"  # type: ignore[union-attr]
    frozen, tuned = rows["tool:parity"], rows["tool:parity:full"]
    assert (frozen.trainable_parameters, frozen.family) == (0, "tool")
    assert tuned.trainable_parameters == tuned.parameters["llm"] > 0
    assert frozen.tokens == tuned.tokens > 0
    assert frozen.serving == "tools"
    assert frozen.mir is None
    # Untrained and untouched: the frozen one answers as before; the connector beside it does not.
    assert frozen.accuracy == frozen.untrained_accuracy.value  # type: ignore[union-attr]
    if found.recommendation.saved.startswith("tool:"):  # type: ignore[union-attr]
        model, reader = open_model(tmp_path / "out" / "best")
        with torch.inference_mode():
            said = answer(
                model, reader, "is it odd?", [Media("image", path=str(tmp_path / "eval-0.png"))]
            )
        assert isinstance(said, str)
