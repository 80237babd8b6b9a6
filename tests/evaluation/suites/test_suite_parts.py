"""The text suite's parts: what they read, refuse and measure; expectations by hand, no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modalign.data.records import Source
from modalign.errors import DataError, UsageError
from modalign.evaluation.rolling import windows
from modalign.evaluation.suites.domains import PASSAGE, linearised, passages
from modalign.evaluation.suites.ethics import ethics
from modalign.evaluation.suites.finding import check_names, find_parts
from modalign.evaluation.suites.gsm8k import gsm8k, last_number, marked_number, written
from modalign.evaluation.suites.parts import Question, chosen_right
from modalign.evaluation.suites.rules import by_rules
from modalign.evaluation.suites.truthfulqa import truthfulqa
from modalign.numbers.pairs import mcnemar
from suite_files import truth_rows, write_csv, write_suite

HOW = {"orders": 5, "seed": 0}


def _question(options: tuple[str, ...], right: tuple[bool, ...], row: int = 1) -> Question:
    return Question(Source("f", row), "Q: why not?\nA:", "why not?", options, right)


def _file(tmp_path: Path, rows: object) -> Path:
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps(rows))
    return path


def test_equal_scores_earn_no_more_than_chance_though_the_gold_option_stands_first(
    tmp_path: Path,
) -> None:
    part = truthfulqa(_file(tmp_path, truth_rows(300)), **HOW)[0]
    summed = part.measures(part.items)[0]
    answers = [{"sums": [-3.0] * 3, "tokens": [1] * 3}] * 300
    assert abs(summed.of(answers).mean() - 1 / 3) < 0.06
    assert summed.by_order is not None
    assert len(set(summed.by_order(answers))) > 1
    assert "first in all 300 questions" in part.notes[0]
    assert "shuffled (5 orders)" in part.notes[0]


@given(st.permutations(range(4)), st.lists(st.floats(-50, 0), min_size=4, max_size=4, unique=True))
def test_without_ties_the_order_of_options_changes_nothing(
    order: list[int], sums: list[float]
) -> None:
    texts, right = ("a", "b", "c", "d"), (True, False, False, False)
    here = _question(texts, right)
    there = _question(tuple(texts[n] for n in order), tuple(right[n] for n in order))
    assert (
        chosen_right([here], [sums], 3, 0)
        == chosen_right([there], [[sums[n] for n in order]], 3, 7)
    ).all()


def test_letters_are_asked_in_every_order(tmp_path: Path) -> None:
    part = truthfulqa(_file(tmp_path, truth_rows(3)), letters=True, **HOW)[1]
    assert len(part.items) == 15
    for item in part.items:
        shown = dict(line.split(". ", 1) for line in item.asked.splitlines()[1:-1])
        assert tuple(shown) == item.options == ("A", "B", "C")
        assert shown[item.options[item.right.index(True)]].startswith("it is ")
    assert len({item.asked for item in part.items[:5]}) > 1
    # A model that says A whatever is shown is right where the true option stands first.
    (measure,) = part.measures(part.items)
    answers = [{"sums": [-1.0, -2.0, -3.0], "tokens": [1] * 3}] * 15
    first = np.array([item.right[0] for item in part.items], dtype=float).reshape(3, 5)
    assert measure.of(answers) == pytest.approx(first.mean(axis=1))
    assert measure.by_order is not None
    assert measure.by_order(answers) == pytest.approx(first.mean(axis=0))


def test_mc2_is_the_share_of_probability_on_true_options(tmp_path: Path) -> None:
    part = truthfulqa(_file(tmp_path, truth_rows(2)), **HOW)[1]
    measure = part.measures(part.items)[0]
    answers = [{"sums": list(np.log([0.2, 0.1, 0.1])), "tokens": [1] * 3}] * 2
    assert measure.of(answers) == pytest.approx([0.75, 0.75])


def test_surface_rules_share_what_they_cannot_tell_apart() -> None:
    options = ("It is not so", "None", "why, yes", "certainly, yes")
    question = _question(options, (True, False, False, False))
    found = {name: float(values[0]) for name, values in by_rules([question]).items()}
    assert found == {
        "a negation": 0.5, "longest option": 0.0, "shortest option": 0.0,
        "fewest words of the question": 0.0,
    }  # fmt: skip
    assert by_rules([_question(("I can't", "yes"), (True, False))])["a negation"] == [1.0]
    assert by_rules([_question(("knot", "noted"), (True, False))])["a negation"] == [0.5]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one"),
        ({"question": "a"}, "expected a list of questions"),
        ([{"question": "a"}], ":1: expected question, and mc1_targets"),
        (
            [{"question": "a", "mc1_targets": {"Yes": 1, "yes ": 0}, "mc2_targets": {}}],
            ":1: two options are equal: 'yes'",
        ),
        (
            [{"question": "a", "mc1_targets": {"x": 0, "y": 0}, "mc2_targets": {}}],
            ":1: no option is true",
        ),
        (
            [{"question": "a", "mc1_targets": {"x": 1, "y": 1}, "mc2_targets": {}}],
            "every option is true",
        ),
        ([{"question": "a", "mc1_targets": {"x": 2}, "mc2_targets": {}}], "neither 0 nor 1"),
        ([{"question": "a", "mc1_targets": {"x": 1}, "mc2_targets": {}}], "1 options, not two"),
    ],
)
def test_questions_that_cannot_be_scored_are_refused(
    tmp_path: Path, rows: object, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        truthfulqa(_file(tmp_path, rows), **HOW)


def test_exact_match_needs_a_whole_group(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "suite")
    part = ethics("virtue", folder / "ethics" / "virtue.csv", **HOW)
    exact, summed = part.measures(part.items)[:2]
    assert (exact.name, exact.headline, summed.headline) == ("exact match by group", True, False)
    # The first group wholly right; of the second all but one.
    sums = [[0.0, 1.0] if item.right[1] else [1.0, 0.0] for item in part.items]
    sums[7] = [0.0, 1.0]
    answers = [{"sums": each, "tokens": [1, 1]} for each in sums]
    assert exact.of(answers).tolist() == [1.0, 0.0]
    assert summed.of(answers).mean() == 0.9
    assert exact.constants["chance"] == pytest.approx([0.5**5] * 2)
    assert summed.constants["majority"].mean() == 0.8
    assert exact.constants["majority"].tolist() == [0.0, 0.0]


def test_groups_of_ethics_are_scenarios_and_blocks(tmp_path: Path) -> None:
    inside = write_suite(tmp_path / "suite") / "ethics"
    for name, groups in (("deontology", 2), ("justice", 2), ("virtue", 2)):
        part = ethics(name, inside / f"{name}.csv", **HOW)
        assert len({item.group for item in part.items}) == groups
    rows = [["label", "scenario"], *([str(n % 2), f"{n} begins so"] for n in range(8))]
    part = ethics("justice", write_csv(tmp_path / "j.csv", rows), **HOW)
    assert "blocks of four" in part.notes[0]
    assert part.measures(part.items)[0].name == "accuracy (summed)"


def test_a_limit_keeps_groups_whole(tmp_path: Path) -> None:
    rows = [["label", "scenario"], *([str(n % 2), f"she {n // 5} [SEP] {n}"] for n in range(50))]
    part = ethics("virtue", write_csv(tmp_path / "virtue.csv", rows), limit=7, **HOW)
    groups = [item.group for item in part.items]
    assert len(groups) == 10
    assert {groups.count(group) for group in groups} == {5}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no column label or input, only none"),
        ([["label", "text"], ["1", "a"]], "no column input"),
        ([["label", "input"]], "holds no row"),
        ([["label", "input"], ["2", "a"]], r":2: the label is '2'"),
        ([["label", "input"], ["1"]], r":2: has 1 columns, not 2"),
    ],
)
def test_broken_ethics_files_are_refused(tmp_path: Path, rows: list[list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ethics("commonsense", write_csv(tmp_path / "commonsense.csv", rows), **HOW)


def test_numbers_are_read_from_written_answers() -> None:
    text = " 3 + 4 = 7 apples, $1,234.\n#### 1,234.\n\nQuestion: 5?\nAnswer: 6"
    assert last_number(written(text)) == marked_number(written(text)) == "1234"
    assert last_number("none") == marked_number("so 5") == ""


def test_examples_come_from_another_file_in_a_seeded_order(tmp_path: Path) -> None:
    inside = write_suite(tmp_path / "suite") / "gsm8k"
    test, train = inside / "gsm8k_test.jsonl", inside / "gsm8k_train.jsonl"
    first, again = (gsm8k(test, train, shots=2, seed=3).items for _ in range(2))
    assert [item.prompt for item in first] == [item.prompt for item in again]
    assert len({item.prompt.partition("\nAnswer")[0] for item in first}) > 1
    assert all(item.prompt.count("Question:") == 3 and len(item.turns) == 5 for item in first)
    with pytest.raises(DataError, match=r"gsm8k_test.jsonl:1: is also problem .*:1"):
        gsm8k(test, test, shots=2)
    with pytest.raises(DataError, match="4 examples are fewer than 5 shots"):
        gsm8k(test, train, shots=5)
    tiny.write_jsonl(test, [{"question": "a", "answer": "5"}])
    with pytest.raises(DataError, match="does not end in #### and a number"):
        gsm8k(test, train, shots=1)


@given(st.text(st.sampled_from("ab \n"), max_size=9000))
def test_passages_are_the_text_in_order(text: str) -> None:
    found = list(passages(text))
    assert all(len(piece) <= PASSAGE for piece in found)
    rest = text.strip()
    for piece in found:
        assert rest.startswith(piece)
        rest = rest[len(piece) :][(rest[len(piece) : len(piece) + 1] in (" ", "\n")) :]
    assert len(rest) < 200


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_predict_every_token_once_from_what_stands_before(length: int, window: int) -> None:
    ids = list(range(1, length + 1))
    said: list[int] = []
    for given_ids, predicted in windows(ids, 0, window):
        assert given_ids[-1] == predicted[0] - 1
        assert len(given_ids) + len(predicted) - 1 <= window
        assert given_ids == list(range(given_ids[0], given_ids[-1] + 1))
        said += predicted
    assert said == ids


def test_a_ratio_of_sums_is_the_mean_of_its_parts() -> None:
    above, below = np.array([3.0, 10.0, 2.0]), np.array([2.0, 5.0, 4.0])
    assert linearised(above, below).mean() == pytest.approx(15 / 11)


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == mcnemar(0, 5) == pytest.approx(2 / 2**5)


def test_parts_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "suite")
    (folder / "ethics" / "justice.csv").unlink()
    parts, notes = find_parts(folder, shots=1)
    assert "ethics justice" not in [part.name for part in parts]
    assert len(notes) == 1
    assert "ethics (justice): left out" in notes[0]
    with pytest.raises(DataError, match=r"ethics \(justice\) needs justice.csv"):
        find_parts(folder, ["ethics"])
    with pytest.raises(DataError, match=r"truthfulqa needs mc_task.json.*domains needs files"):
        find_parts(_empty(tmp_path))
    with pytest.raises(UsageError, match="no part 'etics'"):
        check_names("text", ["etics"])
    with pytest.raises(UsageError, match="no suite 'txt'"):
        check_names("txt", [])


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_shared_questions_reach_the_known_rates() -> None:
    """The rule of negation was found to reach 51 % on these 400 questions, the longest option 34 %."""
    file = tiny.SHARED / "data" / "truthfulqa" / "mc_task.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    part = truthfulqa(file, **HOW)[0]
    found = {name: values.mean() for name, values in part.measures(part.items)[0].constants.items()}
    assert found["a negation"] == pytest.approx(0.51, abs=0.005)
    assert found["longest option"] == pytest.approx(0.34, abs=0.005)
    assert found["chance"] == pytest.approx(0.22, abs=0.005)
