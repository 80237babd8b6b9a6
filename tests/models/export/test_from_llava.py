"""A Llava taken apart and put together again computes what it did; what has no counterpart is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.errors import UsageError
from modalign.models.asking import conversation_of
from modalign.models.export import load_model, observe, save_model
from modalign.models.export.from_llava import composed_from_llava
from modalign.models.export.ladder import export_model


def asked(processor: Any) -> list[Any]:
    records = [
        tiny.record([tiny.image(1), "is the ball red ?"], "yes"),
        tiny.record(["how many ", tiny.image(2), tiny.image(3)], "no", "and now ?", "two", row=2),
        tiny.record("what is it ?", "seven", row=3),
    ]
    return [conversation_of(record, processor) for record in records]


@pytest.mark.parametrize(
    ("connector", "llm", "tower"),
    [("mlp", "llama", "siglip"), ("linear", "qwen2", "clip"), ("mlp", "gemma", "vit")],
)
def test_the_same_answers(
    compose_tiny: Any, tmp_path: Path, connector: str, llm: str, tower: str
) -> None:
    saved = save_model(*compose_tiny(connector, llm, tower), tmp_path / "llava")
    assert saved.kind == "native:Llava"
    llava, processor = load_model(saved.folder)
    expected = observe(llava, processor, asked(processor), 4)
    model, its_processor = composed_from_llava(llava, processor)  # type: ignore[arg-type]
    seen = observe(model, its_processor, asked(its_processor), 4)
    assert expected.keys() == seen.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            assert torch.allclose(value, seen[name], atol=1e-4), name
        else:
            assert torch.equal(value, seen[name]), name


def test_a_gateway_of_a_llava(compose_tiny: Any, tmp_path: Path) -> None:
    """Through the whole export: written, loaded without modalign, compared with the Llava."""
    save_model(*compose_tiny("mlp"), tmp_path / "llava")
    rows = [
        {"image": f"{n}.png", "question": "is the ball red ?", "answer": "yes"} for n in range(2)
    ]
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(tiny.png_bytes(n))
    data = tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    done = export_model(tmp_path / "llava", tmp_path / "gateway", to="gateway", data=str(data))
    assert done.rung == "gateway"
    assert done.difference <= 1e-5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vision_feature_layer": [-1, -2]}, "reads layers"),
        ({"projector_hidden_act": "relu"}, "'relu' between its maps"),
        ({"vision_feature_select_strategy": "default"}, "keeps 'default' features"),
    ],
)
def test_forms_without_a_counterpart(
    compose_tiny: Any, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    save_model(*compose_tiny("mlp"), tmp_path / "llava")
    llava, processor = load_model(tmp_path / "llava")
    for name, value in change.items():
        setattr(llava.config, name, value)
    with pytest.raises(UsageError, match=why):
        composed_from_llava(llava, processor)  # type: ignore[arg-type]
