"""``modalign eval --task`` from the command line: tables, JSON, the file of records, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from compared import Compared, read_rows

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def presence(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes' questions of yes and no, of two splits, as flat rows."""
    rows = [row for row in read_rows(compared.data / "eval.jsonl") if row["skill"] == "presence"]
    flat = []
    for number, row in enumerate(rows):
        image, question = row["messages"][0]["content"]
        flat.append(
            {
                "image": str(compared.data / image["image"]),
                "question": question["text"],
                "answer": row["messages"][1]["content"],
                "skill": ("random", "popular")[number % 2],
                "objects": [question["text"].split()[-1].strip("?")],
            }
        )
    assert {row["answer"] for row in flat} == {"yes", "no"}
    return tiny.write_jsonl(tmp_path_factory.mktemp("presence") / "presence.jsonl", flat)


def test_a_task_has_its_measures_per_skill(cli: Cli, compared: Compared, presence: Path) -> None:
    code, out, err = cli("eval", compared.out / "best", presence, "--task", "pope")
    assert code == 0, err
    for words in ("pope (version 1)", "random", "popular", "overall", "precision", "recall", "F1", "says yes",
                  "invalid", "blank", "shuffled", "chance", "frequent", "always"):  # fmt: skip
        assert words in " ".join(out.split()), words


def test_json_and_file_say_how_to_repeat_it(
    cli: Cli, compared: Compared, presence: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "deep" / "rows.jsonl"
    arguments = (
        "eval",
        compared.out / "best",
        presence,
        "--task",
        "chair",
        "--json",
        "--out",
        rows,
    )
    code, out, err = cli(*arguments)
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["task_version"], found["lower_is_better"]) == ("chair", 1, True)
    assert found["harness"].startswith("modalign ")
    assert found["overall"]["measures"]["CHAIR-s"]["interval"] == "wilson"
    assert "recall" in found["notes"][0]
    lines = read_rows(rows)
    assert len(lines) == found["overall"]["measures"]["CHAIR-s"]["n"]
    for line in lines:
        assert {"prompt", "output", "normalised", "score", "details", "generation"} <= set(line)
        assert (line["task"], line["task_version"]) == ("chair", 1)
        assert line["details"]["present"] >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "bleu"], 2, "no task 'bleu': choose from exact, vqa, anls, choice, caption, wer, pope, chair"),
        (["--task", "vqa", "--letters"], 2, "--letters is for task choice"),
        (["--task", "vqa"], 3, "presence.jsonl:1: 0 answers, not ten"),
        (["--task", "choice"], 3, "presence.jsonl:1: 0 options"),
        (["--task", "chair", "--objects", "none.json"], 3, "none.json cannot be read"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_before_a_model_is_loaded(
    cli: Cli, presence: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    found, _, err = cli("eval", tmp_path, presence, *arguments)
    assert found == code, err
    assert words in " ".join(err.split())
