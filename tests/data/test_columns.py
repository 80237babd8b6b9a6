"""Columns by other names: other tools' rows, names that a user gives, and names misspelt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.data.readers import read_records
from modalign.data.readers.columns import parse_columns, unread
from modalign.errors import DataError, UsageError, grouped

TURN = [("user", "name it"), ("assistant", "seven")]
SHAPES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "alpaca": ({"instruction": "name it", "input": "", "output": "seven"}, TURN),
    "alpaca with input": (
        {"instruction": "name it", "input": "in words", "output": "seven"},
        [("user", "name it\nin words"), TURN[1]],
    ),
    "dolly": (
        {"instruction": "name it", "context": "a digit", "response": "seven"},
        [("user", "name it\na digit"), TURN[1]],
    ),
    "prompt": ({"prompt": "name it", "response": "seven"}, TURN),
    "trl": ({"prompt": "name it", "completion": "seven"}, TURN),
    "trl turns": (
        {
            "prompt": [{"role": "user", "content": "name it"}],
            "completion": [{"role": "assistant", "content": "seven"}],
        },
        TURN,
    ),
    "swift": (
        {"query": "name it", "response": "seven", "history": [["hi", "yes?"]], "system": "short"},
        [("system", "short"), ("user", "hi"), ("assistant", "yes?"), *TURN],
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "name it"},
                {"from": "gpt", "value": "seven"},
            ],
            "system": "short",
        },
        [("system", "short"), *TURN],
    ),
    "sharegpt in messages": (
        {"messages": [{"from": "human", "value": "name it"}, {"from": "gpt", "value": "seven"}]},
        TURN,
    ),
    "an answer of its own": (
        {"prompt": "x", "response": "y", "question": "name it", "answer": "seven"},
        TURN,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_other_tools(tmp_path: Path, shape: str) -> None:
    row, turns = SHAPES[shape]
    (record,) = read_records(tiny.write_jsonl(tmp_path / "x.jsonl", [row])).records
    assert [(message.role, message.text) for message in record.messages] == turns


def test_an_image_stands_before_the_first_question(tmp_path: Path) -> None:
    row = {"image": "a.png", "query": "q", "response": "r", "history": [["p", "s"]]}
    (record,) = read_records(tiny.write_jsonl(tmp_path / "x.jsonl", [row])).records
    assert [len(m.parts) for m in record.messages] == [2, 1, 1, 1]


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    rows = [{"frage": "q", "label": n, "answer": "not this", "file": "a.png"} for n in range(2)]
    path = tiny.write_jsonl(tmp_path / "x.jsonl", rows)
    columns = parse_columns("question=frage, answer=label,image=file")
    found = read_records(path, columns=columns).records
    assert [r.answer for r in found] == ["0", "1"]
    assert [next(r.media()).path for r in found] == [str(tmp_path / "a.png")] * 2
    with pytest.raises(
        DataError, match=r"'lable' that --columns answer=lable names; did you mean label\?"
    ):
        read_records(tiny.write_jsonl(path, [{"label": "x"}]), columns={"answer": "lable"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question", "write OURS=YOURS"),
        ("anser=x", "did you mean answer"),
        ("answer=", "OURS=YOURS"),
    ],
)
def test_wrong_names_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_columns(text)


def test_almost_a_known_column_is_reported(tmp_path: Path) -> None:
    rows = [{"imgae": "a.png", "question_id": 3, "question": "q", "answer": "a", "skil": "x"}] * 2
    found = unread(read_records(tiny.write_jsonl(tmp_path / "x.jsonl", rows)).records)
    assert len(found) == 2
    assert "did you mean image?" in found[0]
    assert "'skil' of 2 rows is not read: did you mean skill?" in found[1]


def test_complaints_of_one_kind_stand_once() -> None:
    alike = [(f"a.jsonl:{n}", f"image /x/{n}.png: missing") for n in range(1, 31)]
    lines = grouped([*alike, ("a.jsonl:40", "empty"), ("a.jsonl:41", "empty")])
    assert lines == [
        "a.jsonl:1: image /x/1.png: missing (and 29 more rows like it: "
        "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, ...)",
        "a.jsonl:40: empty",
        "a.jsonl:41: empty",
    ]
    different = [(f"a:{n}", word) for n, word in enumerate(("one", "two", "three", "four"))]
    assert grouped(different, most=3) == ["a:0: one", "a:1: two", "a:2: three", "... and 1 more"]
    assert json.dumps(grouped([])) == "[]"


def test_files_in_a_column_that_is_not_read_are_named(tmp_path: Path) -> None:
    rows = [
        {"picture": "a.png", "question": "what?", "answer": "one"},
        {"picture": "b.JPG", "question": "what?", "answer": "two"},
        {"image": "c.png", "thumbnail": "d.png", "question": "what?", "answer": "three"},
    ]
    found = unread(read_records(tiny.write_jsonl(tmp_path / "x.jsonl", rows)).records)
    assert len(found) == 1
    assert "'picture' of 2 rows" in found[0]
    assert "--columns image=picture" in found[0]
