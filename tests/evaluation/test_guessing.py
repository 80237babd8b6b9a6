"""What a blind guesser knows: options, else the training answers to the question, else all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modalign.data.records import Message, Record, Source
from modalign.errors import DataError
from modalign.evaluation.guessing import KEPT, OFTEN, BlindGuess, blind_guess


def asked(question: str, answer: str, row: int = 1, **fields) -> Record:
    turns = (Message("user", (question,)), Message("assistant", (answer,)))
    return Record(f"{question}-{row}", turns, Source("rows.jsonl", row), **fields)


TRAINING = [asked("which digit?", str(n % 4), n) for n in range(20)] + [
    asked(f"is there a {n}?", "yes" if n % 3 else "no", n) for n in range(9)
]  # fmt: skip


def test_chance_is_one_over_what_training_answered() -> None:
    guess = BlindGuess.of(TRAINING)
    seldom = asked("is there a 3?", "yes")  # not asked often: any of 0 to 3, yes, no
    rows = [asked("Which  digit?", "2"), asked("which digit?", "7"), seldom]
    assert guess.chance(rows) == [1 / 4, 0, 1 / 6]
    assert guess.majority(rows[2:]) == ["yes"]
    assert guess.chance([asked("?", "red", options=("red", "blue", "green"))]) == [1 / 3]
    accepted = asked("which digit?", "2", answers=("3",))
    assert guess.chance([accepted]) == [1 / 2]


def test_a_skill_and_the_rows_at_hand_change_nothing() -> None:
    rows = [asked("which digit?", "1", n) for n in range(5)]  # one answer: not 100 %
    alone = BlindGuess.of(TRAINING).chance(rows)
    named = [replace(row, skill=f"skill {n}") for n, row in enumerate(rows)]
    trained = BlindGuess.of(replace(r, skill=r.answer) for r in TRAINING)
    assert alone == trained.chance(named) == [1 / 4] * 5


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    many = [asked("what is written?", f"word {n}", n) for n in range(KEPT + 250)]
    guess = BlindGuess.of([*TRAINING, *many])
    guess.save(tmp_path)
    again = blind_guess(tmp_path)
    rows = [*TRAINING, many[0]]
    assert again.chance(rows) == pytest.approx(guess.chance(rows))
    again.save(tmp_path)
    assert blind_guess(tmp_path).chance(rows) == pytest.approx(guess.chance(rows))
    assert again.mean_chance(TRAINING[:OFTEN]) == pytest.approx(1 / 4)


def test_nothing_known_is_no_chance(tmp_path: Path) -> None:
    assert blind_guess(tmp_path).chance(TRAINING[:1]) == [None]
    assert blind_guess(tmp_path).mean_chance(TRAINING[:1]) is None
    (tmp_path / "training_answers.json").write_text("[]")
    with pytest.raises(DataError, match=r"training_answers\.json cannot be read"):
        blind_guess(tmp_path)
