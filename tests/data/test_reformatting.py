"""Facts in other forms: pure, seeded, with distractors of the same relation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modalign.data.readers import read_records, write_records
from modalign.data.records import Message, Record, Source
from modalign.data.reformatting import FORMS, facts_of, reformat, with_invented_subjects
from modalign.errors import DataError, UsageError

NAMES = ("Ann Bell", "Carl Dorn", "Eve Fritz", "Gus Hahn", "Ida Jung")
SPORTS = ("chess", "golf", "golf", "golf", "rugby")


def question(name: str, text: str, answer: str, skill: str = "sport", **extra: Any) -> Record:
    messages = (Message("user", (text,)), Message("assistant", (answer,)))
    place = Source("f.jsonl", NAMES.index(name) + 1)
    return Record(f"{name}-{skill}", messages, place, skill=skill, extra={"subject": name, **extra})


def records() -> list[Record]:
    sports = [question(n, f"{n} plays", s) for n, s in zip(NAMES, SPORTS, strict=True)]
    cities = [question(n, f"{n} lives in", c, "city") for n, c in zip(NAMES, "ABCDE", strict=True)]
    return sports + cities


@given(st.integers(0, 99), st.randoms())
def test_forms_depend_on_seed_and_record_alone(seed: int, mixer: random.Random) -> None:
    known = records()
    mixed = mixer.sample(known, len(known))
    first, second = (reformat(each, seed=seed).records for each in (known, mixed))
    assert sorted(first, key=lambda r: r.id) == sorted(second, key=lambda r: r.id)


def test_distractors_are_of_the_relation_and_the_right_option_is_offered_once() -> None:
    for made in reformat(records()).records:
        if made.options:
            assert made.options.count(made.answer) == 1
            assert len(set(made.options)) == len(made.options)
        of_sport = made.extra["relation"] == "sport"
        if made.skill == "paraphrase":
            assert set(made.options) == ({"chess", "golf", "rugby"} if of_sport else set("ABCDE"))
        if made.skill in ("choice2", "choice4"):
            shown = [line[3:] for line in made.messages[0].text.splitlines()[1:-1]]
            assert len(shown) == len(made.options) == int(made.skill[-1])
            right = next(r for r in records() if r.id == made.extra["fact"])
            assert shown["ABCD".index(made.answer)] == right.answer


def test_each_form_asks_what_it_says() -> None:
    found = reformat(records())
    assert found.left_out["choice4"] == 5  # three sports are too few
    by = {(r.skill, r.extra["fact"]): r for r in found.records}
    back = by["reversed", "Ann Bell-sport"]
    assert back.messages[0].text.startswith("___ plays chess.")
    assert back.answer == "Ann Bell"
    odd = by["odd_one_out", "Ann Bell-sport"].messages[0].text
    assert [name in odd for name in NAMES] == [True, True, True, True, False]
    passage = by["comprehension", "Ann Bell-sport"].messages[0].text
    assert passage == "Ann Bell lives in A. Ann Bell plays"  # never the answer itself
    assert by["free", "Ann Bell-sport"].options == ()


def test_given_paraphrases_are_used_each() -> None:
    own = [*records()[1:], question("Ann Bell", "Ann Bell plays", "chess", paraphrases=["P", "Q"])]
    made = [r for r in reformat(own, ["paraphrase"]).records if r.extra["fact"] == "Ann Bell-sport"]
    assert [r.messages[0].text for r in made] == ["P", "Q"]


def test_what_cannot_be_asked_is_refused_with_its_row() -> None:
    equal = question("Ann Bell", "Ann Bell plays", "chess")
    equal = Record(
        **{f: getattr(equal, f) for f in ("id", "messages", "source")}, options=("chess", "Chess ")
    )
    with pytest.raises(DataError, match=r"f.jsonl:1.*two options are equal"):
        facts_of([equal])
    with pytest.raises(DataError, match="subject 'Bob' is not in its question"):
        facts_of([question("Ann Bell", "Who?", "chess", subject="Bob")])
    with pytest.raises(DataError, match="no form could be made"):
        reformat(records()[:1], ["choice2"])
    with pytest.raises(UsageError, match="did you mean choice4 or choice2"):
        reformat(records(), ["choice"])


def test_invented_subjects_replace_every_name() -> None:
    known = reformat(records()).records
    made = with_invented_subjects(known)
    assert made == with_invented_subjects(known)
    assert len(made) == len(known)
    for record in made:
        text = " ".join([m.text for m in record.messages] + list(record.options))
        assert not any(name in text for name in NAMES)
    with pytest.raises(DataError, match="three different subjects"):
        with_invented_subjects(known[:1])


def test_from_a_file_to_a_file(tmp_path: Path, cli: Any) -> None:
    write_records(records(), tmp_path / "facts.jsonl")
    args = ["data", "reformat", str(tmp_path / "facts.jsonl"), "-o", str(tmp_path / "forms.jsonl")]
    code, _, err = cli(*args)
    assert code == 0, err
    read = read_records(tmp_path / "forms.jsonl").records
    assert {r.skill for r in read} == set(FORMS)
    assert [r.id for r in read] == [
        r.id for r in reformat(read_records(tmp_path / "facts.jsonl").records).records
    ]
    assert cli(*args)[0] == 2  # it is there already
    tiny.write_jsonl(tmp_path / "one.jsonl", [{"question": "q", "answer": "a"}])
    lonely = ["--forms", "choice2", "-o", tmp_path / "none.jsonl"]
    assert cli("data", "reformat", tmp_path / "one.jsonl", *lonely)[0] == 3
