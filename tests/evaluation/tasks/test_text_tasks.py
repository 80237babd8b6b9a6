"""Scorers of short texts: exact match, VQA accuracy, ANLS, word error rate."""

from __future__ import annotations

from itertools import product

import jiwer
import pytest
from told import judged, record

from modalign.errors import DataError
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks.anls import Anls, similarity
from modalign.evaluation.tasks.base import CHANCE, MOST_FREQUENT, Output
from modalign.evaluation.tasks.exact import Exact
from modalign.evaluation.tasks.vqa import CONTRACTIONS, Vqa, normalise, vqa_accuracy
from modalign.evaluation.tasks.wer import Wer
from modalign.evaluation.tasks.wer import normalise as transcript

# ---------------------------------------------------------------------------------- exact


def test_right_means_equal_up_to_case_and_space() -> None:
    scores, measures = judged(
        Exact(),
        [
            (record("Seven"), " seVEN\n"),
            (record("seven"), "seven."),
            (record("seven", "7"), "7"),
            (record("seven"), ""),
        ],
    )
    assert [score.value for score in scores] == [1, 0, 1, 0]
    assert measures["accuracy"].value == 0.5


def test_chance_is_of_training_and_the_majority_per_skill() -> None:
    task, records = Exact(), [
        record("yes", skill="a"), record("no", skill="a"), record("no", skill="a"),
        record("red", skill="b", options=("red", "blue", "green")),
    ]  # fmt: skip
    assert task.chance(records, BlindGuess()) == [None, None, None, 1 / 3]
    assert task.chance(records, BlindGuess.of(records)) == [1 / 3, 1 / 3, 1 / 3, 1 / 3]
    said = [output.text for output in task.constants(records)[MOST_FREQUENT]]
    assert said == ["no", "no", "no", "red"]
    assert CHANCE not in task.constants(records)


# ---------------------------------------------------------------------------------- vqa


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What the public evaluation script makes of these, step by step from its rules.
        ("A dog", "dog"),
        ("the  two dogs.", "2 dogs"),
        ("Yes!", "yes"),
        ("red/blue", "red blue"),  # between words: a space
        ("red / blue", "red blue"),  # beside a space: gone
        ("t-shirt", "t shirt"),
        ("10,000", "10000"),
        ("10,000 (about)", "10000 about"),
        ("1.5", "1.5"),
        ("no. 5.", "no 5"),
        ("dont", "don't"),
        ("DON'T know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("none", "0"),
        ("ten\npeople", "10 people"),
        ("its", "its"),  # a word of its own, no contraction
        ("", ""),
    ],
)
def test_texts_are_compared_as_vqa_compares_them(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_every_contraction_is_known_with_one_apostrophe_left_out() -> None:
    for short, long in CONTRACTIONS.items():
        assert len(long) == len(short) + 1
        assert normalise(short) == normalise(long)
    assert len(CONTRACTIONS) == 114


@pytest.mark.parametrize("matches", range(11))
def test_leaving_one_out_equals_the_closed_form(matches: int) -> None:
    answers = ["cat"] * matches + ["dog"] * (10 - matches)
    left_out = [min(1, (answers[:one] + answers[one + 1 :]).count("cat") / 3) for one in range(10)]
    assert vqa_accuracy("cat", answers) == pytest.approx(sum(left_out) / 10)
    m = matches
    closed = (m * min(1, (m - 1) / 3) + (10 - m) * min(1, m / 3)) / 10
    assert vqa_accuracy("cat", answers) == pytest.approx(closed)
    assert vqa_accuracy("cat", answers) == pytest.approx([0, 0.3, 0.6, 0.9, *[1] * 7][matches])


def test_vqa_normalises_both_sides() -> None:
    people = ["2"] * 3 + ["two"] * 2 + ["The two."] + ["3"] * 4
    scores, measures = judged(Vqa(), [(record("2", *people), "Two!"), (record("2", *people), "4")])
    assert [score.value for score in scores] == [1, 0]
    assert scores[0].counts == {"matches": 6}
    assert measures["accuracy"].value == 0.5
    assert measures["accuracy"].interval == "bootstrap"


def test_vqa_needs_ten_answers() -> None:
    records = [
        record("a", *"abcdefghij", row=1),
        record("a", row=2),
        *[record("a", "b", row=3)] * 12,
    ]
    with pytest.raises(DataError) as error:
        Vqa().check(records)
    words = str(error.value)
    assert "13 of 14 records" in words
    assert "rows.jsonl:2: 0 answers, not ten" in words
    assert "and 12 more rows like it" in words
    assert '"answers"' in words


# ---------------------------------------------------------------------------------- anls


def test_anls_is_the_papers_formula() -> None:
    # 1 - NL where NL < 0.5, with NL the distance over the longer text's length.
    assert similarity("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert similarity("abcd", ["abxy"]) == 0  # NL is 0.5: not below the threshold
    assert similarity("abcde", ["abcxy"]) == pytest.approx(1 - 2 / 5)
    assert similarity("", ["a"]) == 0
    assert similarity("a", ["b", "a"]) == 1


def test_anls_ignores_case_and_space_and_takes_the_best_answer() -> None:
    scores, measures = judged(
        Anls(), [(record("Coca  Cola", "coke"), "coca cola"), (record("Pepsi", "coke"), "cake")]
    )
    assert [score.value for score in scores] == [1, 0.75]
    assert measures["ANLS"].value == pytest.approx(0.875)


# ---------------------------------------------------------------------------------- wer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's  HERE!", "it's here"),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t", "don't"),
        ("'quoted' words", "quoted words"),
        ("well-known, yes", "well known yes"),
        ("snake_case", "snake case"),
        ("\N{LATIN SMALL LIGATURE FI}ne", "fine"),
    ],
)
def test_transcripts_are_compared_as_stated(text: str, expected: str) -> None:
    assert transcript(text) == expected


def test_word_errors_are_counted_over_all_words() -> None:
    # By hand: one substitution in two words, one deletion in four, two insertions in none missing.
    said = [
        (record("Hello, world!"), "hello duck"),
        (record("this is a test"), "this is test"),
        (record("stop"), "please stop now"),
    ]
    scores, measures = judged(Wer(), said)
    assert [score.value for score in scores] == pytest.approx([1 / 2, 1 / 4, 2])
    assert {name: measure.value for name, measure in measures.items()} == pytest.approx(
        {"WER": 4 / 7, "substitutions": 1 / 7, "deletions": 1 / 7, "insertions": 2 / 7}
    )
    assert measures["WER"].n == 7
    assert measures["WER"].value == jiwer.wer(
        [score.counts["expected"] for score in scores], [score.normalised for score in scores]
    )


def test_silence_is_all_deletions() -> None:
    _, measures = judged(Wer(), [(record("one two three"), "")])
    assert (measures["WER"].value, measures["deletions"].value) == (1, 1)


def test_transcripts_without_a_word_are_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:4: no word in the transcript '\?!'"):
        Wer().check([record("?!", row=4)])


@pytest.mark.parametrize(("a", "b"), product(["", "a", "abc"], repeat=2))
def test_anls_is_symmetric_and_one_on_equals(a: str, b: str) -> None:
    assert similarity(a, [b]) == similarity(b, [a])
    assert (similarity(a, [b]) == 1) == (a == b)


def test_saying_nothing_is_wrong() -> None:
    for task in (Exact(), Vqa(), Anls(), Wer()):
        (score,) = task.score([record("cat", *["cat"] * 10)], [Output("")])
        assert score.value == (1 if task.lower_is_better else 0)
