"""Export writes the rung that was asked for, checked, or nothing at all and says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import every_modality
import tiny
from modalign.errors import DataError, ModalignError, UsageError
from modalign.models.export import ladder, save_model
from modalign.models.export.gateway import load_gateway
from modalign.models.export.ladder import export_model

transformers.utils.logging.disable_progress_bar()

Compose = Callable[..., Any]


@pytest.fixture(scope="module")
def models(compose_tiny: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native model, one with its own code, and one that acts inside layers."""
    root = tmp_path_factory.mktemp("models")
    for name in ("mlp", "resampler", "llama_adapter"):
        save_model(*compose_tiny(name), root / name)
    return root


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be compared in a clean process; the process itself is left out for its seconds."""
    seen: list[Any] = []

    def note(expected: Any) -> list[float]:
        seen.extend(expected)
        assert all((item.folder / "config.json").is_file() for item in expected)
        return [0.0]

    monkeypatch.setattr(ladder, "verify_in_clean_process", note)
    return seen


def data(folder: Path) -> str:
    return str(folder / "data.jsonl")


def test_a_gateway_is_written_checked_and_loads(
    models: Path, small_data: Path, tmp_path: Path
) -> None:
    """The whole way, clean process included; the plain language model beside it."""
    told: list[tuple[str, int, int]] = []
    found = export_model(
        models / "resampler",
        tmp_path / "gateway",
        to="gateway",
        data=data(small_data),
        language_model=tmp_path / "plain",
        progress=lambda *step: told.append(step),
    )
    assert (found.rung, found.records, found.greedy_equal) == ("gateway", 4, True)
    assert found.difference <= found.tolerance == 1e-5
    assert found.language_model == tmp_path / "plain"
    load_gateway(tmp_path / "gateway").check_language_model(tmp_path / "plain")
    assert told[-1][1:] == (3, 3)
    assert json.loads(json.dumps(found.as_json()))["folder"] == str(tmp_path / "gateway")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway", "plain"]


def test_nothing_is_left_of_what_answers_otherwise(
    models: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teeth: the model whose answers are expected is another than the one that is written."""
    original = ladder.observe

    def other(*arguments: Any) -> dict[str, Any]:
        seen = original(*arguments)
        return {k: v + 0.01 if v.is_floating_point() else v for k, v in seen.items()}

    monkeypatch.setattr(ladder, "observe", other)
    with pytest.raises(ModalignError, match=r"out: .*logits differ .*1e-05.*Nothing was written"):
        export_model(
            models / "resampler", tmp_path / "out", to="remote-code", data=data(small_data)
        )
    assert not list(tmp_path.iterdir())


def test_without_a_rung_the_highest_is_taken(
    models: Path, small_data: Path, tmp_path: Path, checked: list[Any]
) -> None:
    native = export_model(models / "mlp", tmp_path / "a", data=data(small_data))
    assert (native.rung, native.loads_as) == ("native", "LlavaForConditionalGeneration")
    own = export_model(models / "resampler", tmp_path / "b", data=data(small_data))
    assert (own.rung, own.loads_as) == ("remote-code", "ModalignForConditionalGeneration")
    assert "swiglu_resampler" in own.notes[0]  # what would have been native
    assert [item.form for item in checked] == ["whole", "whole"]


@pytest.mark.parametrize(
    ("name", "to", "reason"),
    [
        ("resampler", "native", r"cannot be a native model: .*'resampler'.*can be remote-code"),
        ("llama_adapter", "gateway", r"'llama_adapter' acts inside"),
        (
            "mlp",
            "heaven",
            r"no form 'heaven' to export to; choose from native, remote-code, gateway",
        ),
    ],
)
def test_a_rung_that_is_not_reached_is_refused(
    name: str,
    to: Any,
    reason: str,
    models: Path,
    small_data: Path,
    tmp_path: Path,
    checked: list[Any],
) -> None:
    with pytest.raises(UsageError, match=reason):
        export_model(models / name, tmp_path / "out", to=to, data=data(small_data))
    assert not list(tmp_path.iterdir())
    assert not checked


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"target": "Lava"},
            r"no export to 'Lava'; did you mean Llava. choose from Llava, .*CausalLM",
        ),
        ({"target": "Llava", "to": "gateway"}, "does not go with --to gateway"),
        ({"target": "Idefics3"}, "cannot become Idefics3"),
        ({"language_model": "plain"}, "goes with --to gateway only"),
    ],
)
def test_wrong_requests_are_refused(
    options: dict[str, Any], reason: str, models: Path, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        export_model(models / "mlp", tmp_path / "out", data=data(small_data), **options)


def test_a_target_that_does_not_fit_says_why(
    models: Path, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not as Llava: Llava has no connector like 'resampler'"):
        export_model(models / "resampler", tmp_path / "o", target="Llava", data=data(small_data))
    with pytest.raises(UsageError, match="are not discrete codes"):
        export_model(models / "resampler", tmp_path / "o", target="CausalLM", data=data(small_data))


def test_what_is_no_model_of_media_is_refused(
    models: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="plain language model"):
        export_model(llm_folder(), tmp_path / "out")
    with pytest.raises(UsageError, match="no model"):
        export_model(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="is the model itself"):
        export_model(models / "mlp", models / "mlp")
    tools = tmp_path / "tools"
    shutil.copytree(llm_folder(), tools)
    (tools / "tools.json").write_text("{}")
    with pytest.raises(UsageError, match=r"text of tools.*modalign serve"):
        export_model(tools, tmp_path / "out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.txt").write_text("years")
    with pytest.raises(UsageError, match="not a model"):
        export_model(models / "mlp", tmp_path / "thesis")


def test_records_are_those_of_the_run_else_asked_for(
    llm_folder: Callable[..., Path], tmp_path: Path, checked: list[Any]
) -> None:
    model, processor, _ = every_modality.composed(str(llm_folder()), ("series",), "linear")
    save_model(model, processor, tmp_path / "run" / "model")
    with pytest.raises(
        DataError, match=r"no records to compare .* on: give records of series with"
    ):
        export_model(tmp_path / "run" / "model", tmp_path / "out")
    rows = [{"series": [[float(i), 1.0]] * 16, "question": "up?", "answer": "no"} for i in range(6)]
    train = tiny.write_jsonl(tmp_path / "train.jsonl", rows)
    record = {"data": {"train": str(train), "val": None}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(record))
    found = export_model(tmp_path / "run" / "model", tmp_path / "out", records=2)
    assert found.compared_on == str(train)
    assert found.records == len(checked[0].conversations) == 2
    assert checked[0].conversations[1][0]["content"][0]["type"] == "series"
