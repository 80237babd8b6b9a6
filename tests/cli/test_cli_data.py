"""``modalign data curate``: what a user does, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny

QUESTION = "which of the two houses on the hill behind the river is the larger one?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows with one exact and one near duplicate, a short one, one that the evaluation set has."""
    rows = [
        {"question": QUESTION, "answer": "the left"},
        {"question": QUESTION, "answer": "the left"},
        {"question": QUESTION.replace("?", "!"), "answer": "the left"},
        {"question": "why?", "answer": "so"},
        {"question": "name the colour of the third fish [red]", "answer": "green"},
        {"question": "how many boats are there at the pier in the morning?", "answer": "two"},
    ]
    tiny.write_jsonl(tmp_path / "eval.jsonl", rows[4:5])
    return tiny.write_jsonl(tmp_path / "train.jsonl", rows)


def test_help_shows_examples_and_exit_codes(cli) -> None:
    code, out, _ = cli("data", "curate", "--help")
    assert code == 0
    assert "modalign data curate --replay clean.card.json" in out
    assert "Exit codes" in out


def test_operators_by_options_and_replay(cli, data: Path) -> None:
    clean = data.with_name("clean.jsonl")
    options = ("--near-text", 0.8, "--min-chars", 10, "--against", data.with_name("eval.jsonl"))
    code, out, err = cli("data", "curate", data, "-o", clean, *options)
    assert code == 0, err
    for name in ("exact_duplicates", "length", "contamination", "near_texts"):
        assert name in out
    assert [json.loads(line)["answer"] for line in clean.read_text().splitlines()] == [
        "the left", "two",
    ]  # fmt: skip
    again = data.with_name("again.jsonl")
    code, out, _ = cli(
        "data", "curate", "--replay", data.with_name("clean.card.json"), "-o", again, "--json"
    )
    assert code == 0
    assert json.loads(out)["output"]["rows"] == 2
    assert again.read_bytes() == clean.read_bytes()
    again.write_text("edited by hand\n")
    replay = ("data", "curate", "--replay", data.with_name("clean.card.json"))
    for written in (*replay, "-o", again), ("data", "curate", data, "-o", clean):
        code, _, err = cli(*written)
        assert code == 2
        assert "exists already: --overwrite" in err
    assert again.read_text() == "edited by hand\n"
    assert cli(*replay)[0] == 0  # it would write what is there
    assert cli(*replay, "-o", again, "--overwrite")[0] == 0
    assert again.read_bytes() == clean.read_bytes()
    data.write_text(data.read_text() + "\n")
    code, _, err = cli("data", "curate", "--replay", data.with_name("clean.card.json"))
    assert code == 3
    assert "train.jsonl: changed since the card was written" in err


def test_operators_by_configuration(cli, data: Path) -> None:
    config = data.with_name("ops.yaml")
    config.write_text("operators:\n- length: {of: answer, max_words: 1}\n- exact_duplicates\n")
    card = data.with_name("cards") / "c.json"
    card.parent.mkdir()
    code, out, _ = cli(
        "data", "curate", data, "-o", data.with_name("o.jsonl"), "--config", config,
        "--card", card, "--examples", 1, "--json",
    )  # fmt: skip
    assert code == 0
    first, second = json.loads(card.read_text())["operators"]
    assert (first["name"], first["dropped"], len(first["examples"])) == ("length", 3, 1)
    assert (second["name"], second["dropped"]) == ("exact_duplicates", 0)
    assert json.loads(out) == json.loads(card.read_text())
    assert card.with_suffix(".md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give at least one INPUT"),
        (("DATA",), "give the file to write"),
        (("DATA", "-o", "OUT", "--keep-exact"), "no operators"),
        (("DATA", "-o", "OUT", "--near-text", "3"), "near_texts: threshold"),
        (("DATA", "-o", "OUT", "--keep-share", "0.5"), "encoder: Field required"),
        (("DATA", "-o", "OUT", "--config", "DATA", "--balance", "0.5"), "put them into"),
        (("DATA", "--replay", "OUT"), "--replay takes all but"),
        (("DATA", "-o", "OUT", "--modality", "smell"), "no modality 'smell'"),
        (("DATA", "-o", "DATA"), "exists already"),
        (("DATA", "-o", "DATA", "--overwrite"), "both input and output"),
    ],
)
def test_wrong_usage(cli, data: Path, arguments: tuple[str, ...], message: str) -> None:
    names = {"DATA": str(data), "OUT": str(data.with_name("out.jsonl"))}
    code, _, err = cli("data", "curate", *(names.get(item, item) for item in arguments))
    assert code == 2
    assert message in err
    assert not data.with_name("out.jsonl").exists()


def test_a_missing_input(cli, tmp_path: Path) -> None:
    code, _, err = cli("data", "curate", tmp_path / "none.jsonl", "-o", tmp_path / "out.jsonl")
    assert code == 3
    assert "none.jsonl: no such file" in err
