"""``modalign export``: what is printed, and the exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalign.models.export import ladder, save_model

Compose = Callable[..., Any]


@pytest.fixture(scope="module")
def model(compose_tiny: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "resampler"
    save_model(*compose_tiny("resampler"), folder)
    return folder


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean process, tested elsewhere, left out for its seconds."""
    monkeypatch.setattr(ladder, "verify_in_clean_process", lambda expected: [2e-7])


@pytest.mark.usefixtures("no_process")
def test_the_table_and_json(cli: Any, model: Path, small_data: Path, tmp_path: Path) -> None:
    data = str(small_data / "data.jsonl")
    code, out, _ = cli("export", str(model), "-o", str(tmp_path / "a"), "--data", data)
    assert code == 0
    for words in ("remote-code", "4 of", "2.0e-07", "1e-05", "greedy equal", "yes"):
        assert words in out
    code, out, _ = cli(
        *("export", str(model), "--out", str(tmp_path / "b"), "--to", "gateway"),
        *("--data", data, "--records", "2", "--tolerance", "0.001", "--json"),
    )
    found = json.loads(out)
    assert code == 0
    assert (found["rung"], found["records"], found["tolerance"]) == ("gateway", 2, 0.001)
    assert found["folder"] == str(tmp_path / "b")
    assert (tmp_path / "b" / "gateway.json").is_file()


def test_refusals_have_exit_codes(cli: Any, model: Path, small_data: Path, tmp_path: Path) -> None:
    data = str(small_data / "data.jsonl")
    common = ("export", str(model), "-o", str(tmp_path / "a"), "--json")
    code, out, _ = cli(*common, "--to", "native", "--data", data)
    assert code == json.loads(out)["exit_code"] == 2
    assert "cannot be a native model" in json.loads(out)["error"]
    code, out, _ = cli(*common, "--data", str(tmp_path / "none.jsonl"))
    assert code == 3
    assert not list(tmp_path.iterdir())
    shutil.copytree(model, tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = cli(*common, "--data", data)
    assert (code, sorted(tmp_path.rglob("*"))) == (2, before)
    assert "exists already: --overwrite" in json.loads(out)["error"]
    code, out, _ = cli(
        "export", str(model), "-o", str(tmp_path / "a" / "config.json" / "x"), "--json"
    )
    assert code == 2
    assert "cannot be written" in json.loads(out)["error"]
