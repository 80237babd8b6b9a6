"""Shots, rationales and corruption: how records are changed, and the whole on a tiny model with pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from modalign.data.records import Media, Record, Source
from modalign.evaluation.conditions.rationale import exchanged_texts
from modalign.evaluation.conditions.shots import (
    question_key,
    shower,
    with_other_labels,
    with_shuffled_media,
)
from modalign.evaluation.generation import answer_records
from modalign.evaluation.opened import prompt_tokens
from modalign.models.export import save_model
from modalign.models.open import open_model

Cli = Callable[..., tuple[int, str, str]]


def _pool(count: int = 8) -> list[Record]:
    return [
        replace(tiny.record([tiny.image(n), f"what is {n}?"], f"answer {n}"), id=f"e{n}",
                source=Source("train.jsonl", n + 1), skill=("a", "b")[n % 2])
        for n in range(count)
    ]  # fmt: skip


def test_examples_are_turns_before_the_question_and_nested() -> None:
    pool, record = _pool(), tiny.record([tiny.image(99), "and this?"], "yes", system="be brief")
    one, three = (shower(pool, count, 0)(record) for count in (1, 3))
    assert [message.role for message in three.messages] == ["system", *["user", "assistant"] * 4]
    assert three.messages[1:3] == one.messages[1:3]
    assert three.messages[-2:] == record.messages[-2:]
    assert three == shower(pool, 3, 0)(record) != shower(pool, 3, 1)(record)
    assert len(list(three.media())) == 4
    elsewhere = shower(pool, 3, 0)(replace(record, id="another"))
    assert elsewhere.messages != three.messages


def test_shuffled_labels_are_other_answers_of_the_skill_and_nothing_else() -> None:
    pool = _pool()
    found = with_other_labels(pool, 0)
    answers = {skill: {r.answer for r in pool if r.skill == skill} for skill in ("a", "b")}
    for before, after in zip(pool, found, strict=True):
        assert after.answer != before.answer
        assert after.answer in answers[before.skill or ""]
        assert after.messages[:-1] == before.messages[:-1]


def test_shuffled_pictures_are_other_pictures_and_nothing_else() -> None:
    pool = _pool()
    found = with_shuffled_media(pool, 0)
    assert [r.messages[-1] for r in found] == [r.messages[-1] for r in pool]
    assert [r.messages[0].text for r in found] == [r.messages[0].text for r in pool]
    theirs, ours = ([next(r.media()).content_hash() for r in rows] for rows in (found, pool))
    assert sorted(theirs) == sorted(ours)
    assert all(a != b for a, b in zip(theirs, ours, strict=True))


def test_the_same_question_about_another_picture_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(tiny.png_bytes(1))
    here = tiny.record([tiny.image(1), "What is  this?"], "one")
    copy = tiny.record([Media("image", path=str(tmp_path / "copy.png")), "what is this?"], "two")
    assert question_key(here) == question_key(copy)
    assert question_key(here) != question_key(tiny.record([tiny.image(2), "what is this?"], "one"))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_rationale_is_another_questions(count: int) -> None:
    texts = [f"since {n}" for n in range(count)]
    found = exchanged_texts(texts, 0)
    assert sorted(found) == sorted(texts)
    assert all(a != b for a, b in zip(found, texts, strict=True))


def test_a_begun_answer_is_continued(llm_folder: Callable[..., Path]) -> None:
    """What is generated after a begun answer is what the model says after these ids."""
    model, reader = open_model(llm_folder("llama"))
    tokenizer: Any = reader
    tokenizer.chat_template = None
    record = tiny.record("what is one?", "yes")
    begun = "the top left"
    (found,) = answer_records(model, tokenizer, [record], 5, begun=[begun])
    ids = tokenizer(f"what is one? {begun}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5,
                              do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)  # fmt: skip
    expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert found == expected
    assert found != answer_records(model, tokenizer, [record], 5)[0]


@pytest.fixture(scope="module")
def seeing(
    compose_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:  # fmt: skip
    """A folder with a tiny model that sees pictures, saved."""
    folder = tmp_path_factory.mktemp("seeing") / "model"
    save_model(*compose_tiny("linear"), folder)
    return folder


def _rows(folder: Path, first: int, count: int) -> list[dict[str, str]]:
    rows = []
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(tiny.png_bytes(number))
        rows.append({"id": str(number), "image": f"{number}.png", "question": "what is this?",
                     "answer": ("one", "two")[number % 2]})  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    tiny.write_jsonl(folder / "test.jsonl", _rows(folder, 0, 6))
    tiny.write_jsonl(folder / "train.jsonl", _rows(folder, 10, 5))
    return folder


def test_tokens_of_a_prompt_count_its_media(seeing: Path, data: Path) -> None:
    _, reader = open_model(seeing)
    with_picture = prompt_tokens(reader, tiny.record([tiny.image(1), "what is this?"], "one"))
    without = prompt_tokens(reader, tiny.record("what is this?", "one"))
    assert with_picture - without in range(tiny.PATCHES, tiny.PATCHES + 3)


def test_shots_from_files_to_report(cli: Cli, seeing: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shots"
    arguments = ("eval", seeing, data / "test.jsonl", "--shots", "1,2", "--shots-from", data / "train.jsonl",
                 "--max-new-tokens", "3", "--out", out)  # fmt: skip
    code, said, err = cli(*arguments, "--json")
    assert code == 0, err
    found = json.loads(said)
    names = [row["name"] for row in found["conditions"]]
    assert names == ["0 shots", "1 shot", "1 shot, shuffled labels", "1 shot, shuffled pictures",
                     "2 shots", "2 shots, shuffled labels", "2 shots, shuffled pictures"]  # fmt: skip
    tokens = [row["tokens"]["value"] for row in found["conditions"]]
    assert tokens[1] > tokens[0] + tiny.PATCHES
    assert tokens[4] - tokens[1] == pytest.approx(tokens[1] - tokens[0], abs=3)
    assert tokens[1] == tokens[3]
    assert len(found["pairs"]) == 6
    assert (out / "report.html").is_file()
    assert "shuffled labels" in (out / "report.md").read_text()
    plain = json.loads(
        cli("eval", seeing, data / "test.jsonl", "--max-new-tokens", "3", "--json")[1]
    )
    assert (
        found["conditions"][0]["score"]["value"]
        == plain["overall"]["measures"]["accuracy"]["value"]
    )
    answers = sorted(path.name for path in (out / "answers").iterdir())
    assert len(answers) == 7
    (out / "answers" / answers[0]).unlink()
    code, again, err = cli(*arguments, "--json", "--resume")
    assert code == 0, err
    assert json.loads(again)["conditions"] == found["conditions"]


def test_examples_that_are_evaluated_too_are_refused(cli: Cli, seeing: Path, data: Path) -> None:
    train, test = data / "train.jsonl", data / "test.jsonl"
    code, _, err = cli("eval", seeing, test, "--shots", "1", "--shots-from", test)
    assert code == 2
    assert "is the evaluated file" in " ".join(err.split())
    leak = [
        *map(json.loads, train.read_text().splitlines()),
        json.loads(test.read_text().splitlines()[2]),
    ]
    tiny.write_jsonl(data / "leak.jsonl", leak)
    code, _, err = cli("eval", seeing, test, "--shots", "1", "--shots-from", data / "leak.jsonl")
    assert code == 3
    said = " ".join(err.split())
    assert "leak.jsonl:6: this example is also question" in said
    assert "test.jsonl:3 (1 of 6 examples are evaluated too)" in said
    code, _, err = cli("eval", seeing, test, "--shots", "6", "--shots-from", train)
    assert code == 3
    assert "5 examples are fewer than 6 shots" in err


def test_corruption_from_files_to_report(
    cli: Cli, seeing: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corrupt"
    code, said, err = cli("eval", seeing, data / "test.jsonl", "--corrupt", "noise,rotate", "--severity", "1,5",
                          "--max-new-tokens", "3", "--out", out, "--json")  # fmt: skip
    assert code == 0, err
    found = json.loads(said)
    assert [row["name"] for row in found["conditions"]] == [
        "as they are", "blank media", "noise 1", "noise 5", "rotate 1", "rotate 5"]  # fmt: skip
    assert len(found["pairs"]) == 5
    assert "rotate" in (out / "report.md").read_text()
    code, said, err = cli(
        "eval", seeing, data / "test.jsonl", "--corrupt", "noise", "--severity", "2"
    )
    assert code == 0, err
    assert "as they are" in said


def test_rationale_from_files_to_report(cli: Cli, seeing: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rationale"
    code, said, err = cli("eval", seeing, data / "test.jsonl", "--rationale", "so:", "--max-rationale-tokens", "4",
                          "--max-new-tokens", "3", "--out", out, "--json")  # fmt: skip
    assert code == 0, err
    found = json.loads(said)
    assert [row["name"] for row in found["conditions"]] == [
        "without rationale",
        "with rationale",
        "another question's rationale",
        "with rationale, blank media",
    ]
    assert found["conditions"][1]["counts"] == {"rationales without the mark": 6}
    kept = json.loads((out / "answers" / "with-rationale.json").read_text())["answers"]
    other = json.loads((out / "answers" / "another-question-s-rationale.json").read_text())[
        "answers"
    ]
    assert sorted(row["written"] for row in kept) == sorted(row["written"] for row in other)
    assert "rationales without the mark" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shots", "1"], "--shots needs --shots-from"),
        (["--shots", "one", "--shots-from", "x"], "give whole numbers"),
        (["--shots", "0", "--shots-from", "x"], "needs a number of examples above 0"),
        (["--shots-from", "x"], "--shots-from is for --shots"),
        (["--severity", "1"], "--severity is for --corrupt"),
        (["--corrupt", "fog"], "no corruption is called 'fog'"),
        (["--corrupt", "noise", "--severity", "9"], "severities are 1 to 5"),
        (["--corrupt", "noise", "--rationale", "so:"], "choose one"),
        (["--rationale", " "], "needs a mark"),
        (["--rationale", "so:", "--task", "choice"], "scores options by likelihood"),
        (["--corrupt", "noise", "--task", "chair"], "scores all of them together"),
        (["--resume"], "--resume is for"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cli: Cli, seeing: Path, data: Path, arguments: list[str], words: str
) -> None:
    code, _, err = cli("eval", seeing, data / "test.jsonl", *arguments)
    assert code == 2, err
    assert words in " ".join(err.split())


def test_a_corruption_that_reaches_nothing_is_refused(
    cli: Cli, seeing: Path, tmp_path: Path
) -> None:
    rows = tiny.write_jsonl(tmp_path / "text.jsonl", [{"question": "what?", "answer": "one"}])
    code, _, err = cli("eval", seeing, rows, "--corrupt", "blur")
    assert code == 3
    assert "of which the records hold none (they hold text only)" in " ".join(err.split())
