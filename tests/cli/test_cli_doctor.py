"""``modalign doctor`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import tiny
from modalign.cli.doctor import doctor

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

    def call(train: Path, *arguments: str) -> Result:
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
    assert done.exit_code == 2, done.output
