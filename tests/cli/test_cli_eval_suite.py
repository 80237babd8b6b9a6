"""``modalign eval --suite text`` from the command line, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite_files import truth_rows, write_suite

Cli = Callable[..., tuple[int, str, str]]
QUICK = ("--shots", "1", "--max-new-tokens", "4", "--random-weights", "2")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite") / "data")


@pytest.fixture(scope="module")
def longer(
    llm_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Family -> a tiny model that reads 4,096 tokens."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("longer") / family
        shutil.copytree(llm_folder(family), folder)
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 4096}))
        return folder

    return make  # fmt: skip


def test_a_suite_from_files_to_report_and_back(
    cli: Cli,
    suite: Path,
    longer: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, base, out = longer("llama"), longer("mistral"), tmp_path / "run"
    arguments = (
        "eval",
        model,
        "--suite",
        "text",
        "--suite-data",
        suite,
        "--against",
        base,
        "--out",
        out,
        "--letters",
        *QUICK,
    )
    code, said, err = cli(*arguments, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert list(found["models"]) == ["llama", "mistral"]
    lines = {(line["part"], line["measure"]): line for line in found["lines"]}
    mc1 = lines["truthfulqa mc1", "mc1 (summed)"]
    assert {"llama", "mistral", "random weights", "chance", "a negation", "longest option"} <= set(
        mc1["rows"]
    )
    assert mc1["rows"]["random weights"]["trainings"] == 2
    assert mc1["rows"]["chance"]["value"] == pytest.approx(1 / 3)
    assert mc1["n"] == lines["truthfulqa mc1, letters", "mc1 (letters)"]["n"] == 6
    assert "shuffled" in " ".join(found["notes"])
    tested = [line for line in found["lines"] if line["headline"]]
    assert all(set(line["pairs"]) == {"mistral"} for line in tested)
    raw = sorted(line["pairs"]["mistral"]["difference"]["p_value"] for line in tested)
    corrected = sorted(line["pairs"]["mistral"]["difference"]["p_holm"] for line in tested)
    assert corrected[0] == pytest.approx(min(1.0, raw[0] * len(tested)))  # Holm, over all parts
    assert lines["ethics virtue", "exact match by group"]["over"] == "groups"
    assert lines["gsm8k, 1 shots", "accuracy (last number)"]["n"] == 4
    assert lines["text words", "bits per byte"]["rows"]["llama"]["value"] > 0
    for name in ("report.html", "report.md", "report.json", "report.schema.json"):
        assert (out / name).is_file()
    text = (out / "report.md").read_text()
    for words in ("Surface rules", "a negation", "no difference found", "mistral", "McNemar"):
        assert words in text

    code, _, err = cli(*arguments)
    assert code == 2
    assert "--resume continues it" in err
    code, _, err = cli(*arguments, "--resume", "--seed", "1")
    assert code == 2
    assert "another configuration" in err

    from modalign.evaluation.suites.asking import Asked

    asked: list[str] = []
    answers = Asked.answers

    def counted(self: Any, part: Any, tell: Any = None) -> Any:
        asked.append(part.name)
        return answers(self, part, tell)

    monkeypatch.setattr(Asked, "answers", counted)
    (out / "answers" / "1" / "truthfulqa-mc2.json").unlink()
    code, again, err = cli(*arguments, "--resume", "--json")
    assert code == 0, err
    assert asked == ["truthfulqa mc2"]
    assert json.loads(again)["lines"] == found["lines"]


def test_what_no_row_can_read_is_left_out_and_counted(
    cli: Cli, suite: Path, llm_folder: Callable[..., Path]
) -> None:
    arguments = ("--parts", "ethics,truthfulqa", "--random-weights", "0")
    code, said, err = cli(
        "eval", llm_folder("llama"), "--suite", "text", "--suite-data", suite, *arguments
    )
    assert code == 3
    assert "truthfulqa mc1: no model reads as many tokens" in err
    assert not said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--suite", "txt"], 2, "no suite 'txt'"),
        (["--suite", "text"], 2, "--suite needs --suite-data"),
        (["--suite", "text", "--suite-data", "nowhere"], 3, "nowhere: there is no such folder"),
        (["--suite", "text", "--suite-data", ".", "--parts", "ethic"], 2, "no part 'ethic'"),
        (["--suite", "text", "--suite-data", ".", "--rationale", "x"], 2, "--rationale is not for --suite"),
        (["--suite", "text", "--suite-data", ".", "--shots", "two"], 2, "'two' is not a whole number"),
        (["--suite", "text", "--suite-data", ".", "--form", "both"], 2, "asks in one form"),
        (["--against", "x"], 2, "--against is for --suite"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    cli: Cli, llm_folder: Callable[..., Path], arguments: list[str], code: int, words: str
) -> None:
    found, _, err = cli("eval", llm_folder("llama"), *arguments)
    assert found == code, err
    assert words in " ".join(err.split())


def test_a_wrong_folder_to_compare_with_is_said_before_the_work(
    cli: Cli, suite: Path, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ("--suite", "text", "--suite-data", suite, "--against", tmp_path / "nowhere")
    code, _, err = cli("eval", llm_folder("llama"), *arguments, *QUICK, "--out", tmp_path / "run")
    assert code == 2
    assert "there is no such folder" in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_broken_file_is_named_before_a_model_is_loaded(
    cli: Cli, suite: Path, tmp_path: Path
) -> None:
    rows = truth_rows(3)
    rows[1]["mc1_targets"] = {"Yes": 1, " yes": 0}
    (tmp_path / "mc_task.json").write_text(json.dumps(rows))
    code, _, err = cli("eval", "no-model", "--suite", "text", "--suite-data", tmp_path)
    assert code == 3
    assert "mc_task.json:2: two options are equal: 'yes'" in " ".join(err.split())
    (tmp_path / "mc_task.json").write_bytes(b"")
    code, _, err = cli("eval", "no-model", "--suite", "text", "--suite-data", tmp_path)
    assert code == 3
    assert "is not JSON" in err
