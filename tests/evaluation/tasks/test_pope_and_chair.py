"""POPE on a table made by hand, CHAIR on captions judged by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from told import judged, record

from modalign.errors import DataError
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks.base import MOST_FREQUENT
from modalign.evaluation.tasks.chair import Chair, Vocabulary, plural
from modalign.evaluation.tasks.pope import ALWAYS_YES, Pope, first_word
from modalign.numbers.shares import share

# ---------------------------------------------------------------------------------- POPE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"), ("yes, there is.", "yes"), ("  No!", "no"), ('"No"', "no"),
        ("There is no dog", ""), ("Yesterday", ""), ("not", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_first_word_decides(text: str, said: str) -> None:
    assert first_word(text) == said


def test_pope_on_a_table_made_by_hand() -> None:
    # expected yes: 6 yes, 1 no, 1 invalid; expected no: 3 yes, 7 no, 2 invalid
    table = [("yes", "Yes.", 6), ("yes", "no", 1), ("yes", "maybe", 1)]
    table += [("no", "yes", 3), ("no", "No", 7), ("no", "", 2)]
    said = [(record(expected), text) for expected, text, times in table for _ in range(times)]
    scores, measures = judged(Pope(), said)
    assert sum(score.value for score in scores) == 13
    values = {name: measure.value for name, measure in measures.items()}
    assert values == pytest.approx(
        {
            "accuracy": 13 / 20,  # invalid answers are wrong and stay in the denominator
            "precision": 6 / 9,
            "recall": 6 / 8,
            "F1": 2 * (6 / 9) * (6 / 8) / (6 / 9 + 6 / 8),
            "says yes": 9 / 20,
            "invalid": 3 / 20,
        }
    )
    assert (measures["precision"].n, measures["recall"].n, measures["F1"].n) == (9, 8, 20)
    assert measures["accuracy"] == share([1] * 13 + [0] * 7)
    assert (measures["accuracy"].interval, measures["F1"].interval) == ("wilson", "bootstrap")


def test_reference_rows_of_pope() -> None:
    task = Pope()
    asked = [
        record("yes", skill="random"),
        record("yes", skill="popular"),
        record("no", skill="random"),
    ]
    asked += [record("no", skill="random")]
    rows = task.constants(asked)
    assert [output.text for output in rows[MOST_FREQUENT]] == ["no", "yes", "no", "no"]
    always = task.measures(task.score(asked, rows[ALWAYS_YES]), [None] * 4)
    assert (always["recall"].value, always["precision"].value, always["says yes"].value) == (
        1,
        0.5,
        1,
    )
    assert task.chance(asked, BlindGuess()) == [0.5] * 4


def test_who_never_says_yes_has_no_precision() -> None:
    _, measures = judged(Pope(), [(record("no"), "no"), (record("yes"), "no")])
    assert "precision" not in measures
    assert (measures["recall"].value, measures["F1"].value) == (0, 0)


def test_pope_takes_yes_and_no_only() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:9: the answer is 'seven', not yes or no"):
        Pope().check([record("Yes"), record("seven", row=9)])


# ---------------------------------------------------------------------------------- CHAIR

SYNONYMS = {
    "dog": ["puppy"],
    "hot dog": [],
    "person": ["man", "woman", "people"],
    "car": [],
    "bus": [],
}


def test_mentions_are_found_by_their_longest_name() -> None:
    names = Vocabulary(SYNONYMS)
    assert names.mentions("A man and two puppies eat hot dogs near buses, dogs!") == [
        "person", "dog", "hot dog", "bus", "dog",
    ]  # fmt: skip
    assert names.mentions("") == names.mentions("nothing known") == []


@pytest.mark.parametrize(
    ("one", "several"),
    [("dog", "dogs"), ("bus", "buses"), ("glass", "glasses"), ("bench", "benches"), ("puppy", "puppies"),
     ("box", "boxes"), ("toy", "toys"), ("horse", "horses"), ("zebra", "zebras")],
)  # fmt: skip
def test_regular_plurals(one: str, several: str) -> None:
    assert plural(one) == several


def test_a_name_wins_over_a_plural() -> None:
    names = Vocabulary({"cup": ["glass"], "spectacles": ["glasses"]})
    assert names.mentions("a glass and glasses and cups") == ["cup", "spectacles", "cup"]


def test_an_object_listed_in_both_numbers_is_one() -> None:
    said = record("x", objects=["dogs", "dog"])
    scores, _ = judged(Chair(), [(said, "two dogs")])
    assert scores[0].counts["present"] == scores[0].counts["found"] == 1


def captions() -> list[tuple]:
    """Objects, what was said; judged by hand: 1 of 3 captions hallucinates, 2 of 6 mentions."""
    return [
        (record("a man with a dog", objects=["person", "dog"]), "a woman walks her puppy"),
        (record("a street", objects=["car"]), "a car, a dog and another dog"),  # both dogs
        (record("a man in a bus", objects=["car"]), "a person."),  # the reference names the man
    ]


def test_chair_is_the_papers_two_shares(tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text(json.dumps(SYNONYMS))
    scores, measures = judged(Chair(objects=file), captions())
    assert [score.value for score in scores] == [0, 1, 0]
    assert scores[1].counts["hallucinated_objects"] == ["dog", "dog"]
    assert measures["CHAIR-s"].value == pytest.approx(1 / 3)
    assert measures["CHAIR-i"].value == pytest.approx(2 / 6)
    assert measures["CHAIR-i"].n == 6
    # present: person dog; car; car person bus. Found: both; car; person.
    assert measures["recall"].value == pytest.approx(4 / 6)


def test_synonyms_may_stand_in_the_records() -> None:
    said = captions()
    said[0][0].extra["synonyms"] = {"dog": ["puppy"], "person": ["man", "woman", "people"]}
    said[2][0].extra["objects"] = ["car", "bus"]
    _, measures = judged(Chair(), said)
    assert measures["CHAIR-s"].value == pytest.approx(1 / 3)
    assert measures["CHAIR-i"].value == pytest.approx(2 / 6)


def test_saying_nothing_hallucinates_nothing_and_finds_nothing() -> None:
    task = Chair()
    _, measures = judged(task, [(record("a dog", objects=["dog"]), "")])
    assert (measures["CHAIR-s"].value, measures["recall"].value) == (0, 0)
    assert "CHAIR-i" not in measures  # no mention: not defined
    assert "recall" in task.notes()[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no list of objects"),
        ({"objects": "dog"}, "objects is 'dog', not a list of names"),
        ({"objects": ["dog", "?"]}, "the object '?' has no word"),
        ({"objects": ["dog"], "synonyms": ["puppy"]}, "synonyms is not a mapping"),
    ],
)
def test_records_without_objects_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:5: ") as error:
        Chair().check([record("a dog", row=5, **fields)])
    assert words in str(error.value)
    assert "--objects FILE" in str(error.value)


def test_a_word_for_two_objects_is_refused() -> None:
    both = record("x", objects=["dog", "cat"], synonyms={"dog": ["pet"], "cat": ["pet"]})
    with pytest.raises(DataError, match="'pet' stands for two objects, 'dog' and 'cat'"):
        Chair().check([both])


@pytest.mark.parametrize("text", ["[1]", "{", '{"dog": "puppy"}'])
def test_a_bad_file_of_objects_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(DataError, match=r"objects\.json"):
        Chair(objects=tmp_path / "objects.json")
