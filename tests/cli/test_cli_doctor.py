"""``modalign doctor`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

import tiny
from modalign.cli.doctor import doctor
from modalign.errors import UsageError

app = typer.Typer()
app.command()(doctor)


@pytest.fixture
def run(
    llm_folder: Callable[..., Path],
    tower_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """Run the verb on a configuration whose training file is given."""
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))

    def call(train: Path, *arguments: str, **fields: Any) -> Result:
        config = {
            "parts": {
                "llm": str(llm_folder()),
                "encoder": {"image": str(tower_folder())},
                "feature_layer": -1,
            },
            "data": {"train": str(train)},
            "methods": ["mlp", "llama_adapter"],
            "budget": "4000samples",
            "jobs": 1,
            "training": {"device": "cpu", "batch_size": 4, "llm": "lora"},
            **fields,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return CliRunner().invoke(app, [str(path), *arguments])

    return call


def test_it_prints_sections_and_marks_what_is_learnt(
    run: Callable[..., Result], small_data: Path
) -> None:
    done = run(small_data / "data.jsonl")
    assert done.exit_code == 0, done.output
    for title in ("Data", "Text and template", "Encoder", "Methods", "Machine"):
        assert title in done.output
    assert "✓ ok" in done.output
    assert "[[" in done.output
    assert "llama_adapter" in done.output
    assert "0 errors" in done.output


def test_json_holds_the_same(run: Callable[..., Result], small_data: Path) -> None:
    done = run(small_data / "data.jsonl", "--json", "--method", "mlp")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [facts["name"] for facts in found["methods"]] == ["mlp"]
    assert any(segment["supervised"] for segment in found["sample"])
    (few,) = [check for check in found["checks"] if check["name"] == "validation"]
    assert (few["section"], few["status"]) == ("data", "warning")
    assert few["detail"].startswith("few validation records (")


def test_unusable_data_ends_with_three(run: Callable[..., Result], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "what is one?"}]
    path = tiny.write_jsonl(tmp_path / "bad.jsonl", [{"id": "a", "messages": turns}])
    done = run(path)
    assert done.exit_code == 3, done.output
    assert "✗ error" in done.output
    assert "1 error" in done.output


def test_a_language_model_that_is_missing_ends_with_two(
    run: Callable[..., Result], small_data: Path, tmp_path: Path
) -> None:
    done = run(small_data / "data.jsonl", "--llm", str(tmp_path / "nothing"))
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2


TAUGHT = {"cross_entropy": 1.0, "kl_answer": {"weight": 0.5, "temperature": 2.0}}


def test_references_of_a_configuration_are_tried_and_charged(
    run: Callable[..., Result], small_data: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A folder named from the configuration's own folder; a language model sees text alone."""
    (tmp_path / "before").symlink_to(llm_folder())
    stages = [{"objective": TAUGHT, "references": {"teacher": "before"}, "data": "text"}]
    done = run(small_data / "data.jsonl", "--json", "--method", "mlp", stages=stages)
    assert done.exit_code == 0, done.output
    (facts,) = json.loads(done.stdout)["methods"]
    assert facts["references"]["teacher"] > 1e5
    seeing = [{"objective": TAUGHT, "references": {"teacher": "before"}}]
    done = run(small_data / "data.jsonl", "--method", "mlp", stages=seeing)
    assert done.exit_code != 0
    assert "'teacher' takes text only" in done.output


def test_a_reference_with_another_vocabulary_is_an_error(
    run: Callable[..., Result], small_data: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    other = AutoTokenizer.from_pretrained(llm_folder())
    other.add_tokens(["quokka"])
    other.save_pretrained(tmp_path / "other")
    stages = [{"objective": TAUGHT, "references": {"teacher": "other"}}]
    done = run(small_data / "data.jsonl", "--method", "mlp", stages=stages)
    assert done.exit_code == 2, done.output
    assert "another vocabulary" in done.output
