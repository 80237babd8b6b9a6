"""Multiple choice: which option counts as taken, how options are shown, and the list of tasks."""

from __future__ import annotations

import builtins
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from told import record

from modalign.errors import DataError, UsageError
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks import TASKS, make_task
from modalign.evaluation.tasks.base import MOST_FREQUENT, OptionScore, Output
from modalign.evaluation.tasks.choice import Choice

COLOURS = ("red", "dark blue", "green")


def said(options: tuple[str, ...], *values: float) -> Output:
    return Output(options=tuple(OptionScore(o, v, 1) for o, v in zip(options, values, strict=True)))


def test_the_likeliest_option_is_taken_by_sum_and_per_byte() -> None:
    task, asked = Choice(), record("dark blue", options=COLOURS)
    # -3.0 is the largest sum; per byte -4.5 / 9 = -0.5 is more than -3 / 3 = -1
    (score,) = task.score([asked], [said(COLOURS, -3.0, -4.5, -9.0)])
    assert (score.value, score.counts["per_byte"], score.normalised) == (0, 1, "red")
    measures = task.measures([score], [None])
    assert measures["accuracy (summed)"].value == 0
    assert measures["accuracy (per byte)"].value == 1
    assert score.counts["loglikelihoods"] == [-3.0, -4.5, -9.0]


def test_a_tie_is_wrong() -> None:
    asked = record("red", options=("red", "tan"))
    (score,) = Choice().score([asked], [said(("red", "tan"), -1.0, -1.0)])
    assert (score.value, score.counts["per_byte"], score.normalised) == (0, 0, "")


def test_options_are_shuffled_by_seed_and_record_and_nothing_else() -> None:
    records = [record("red", options=COLOURS, row=n) for n in range(300)]
    orders = [Choice(letters=True, seed=1).shown(each) for each in records]
    assert orders == [Choice(letters=True, seed=1).shown(each) for each in records]
    assert orders[7:9] == [Choice(letters=True, seed=1).shown(each) for each in records[7:9]]
    assert orders != [Choice(letters=True, seed=2).shown(each) for each in records]
    first = Counter(order[0] for order in orders)
    assert min(first.values()) > 70  # a hundred each, were they equal
    assert Choice().shown(records[0]) == COLOURS


def test_letters_are_shown_in_the_prompt_and_scored() -> None:
    task, asked = Choice(letters=True), record("red", options=COLOURS)
    shown = task.shown(asked)
    prompt = task.asked(asked).messages[-2].text
    assert prompt == (
        f"what?\nA. {shown[0]}\nB. {shown[1]}\nC. {shown[2]}\nAnswer with the letter of the right option."
    )
    assert task.asked(asked).messages[-1] == asked.messages[-1]
    assert task.offered(asked) == ("A", "B", "C")
    right = shown.index("red")
    values = [-1.0 if place == right else -2.0 for place in range(3)]
    (score,) = task.score([asked], [said(("A", "B", "C"), *values)])
    assert (score.value, score.normalised) == (1, "red")


@pytest.mark.parametrize("letters", [False, True])
def test_the_majority_takes_the_most_frequent_right_option(letters: bool) -> None:
    task = Choice(letters=letters)
    records = [record(a, options=COLOURS, row=n) for n, a in enumerate(("red", "red", "green"))]
    records.append(record("tan", options=("tan", "pink"), row=9))
    scores = task.score(records, task.constants(records)[MOST_FREQUENT])
    assert [score.value for score in scores] == [1, 1, 0, 0]  # where it is not offered: wrong
    assert [score.counts["per_byte"] for score in scores] == [1, 1, 0, 0]
    assert task.chance(records, BlindGuess()) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "0 options, not two or more"),
        (("red",), "1 options"),
        (("red", "Red "), "two options are the same"),
        (("blue", "green"), "the answer 'red' is not one of the options"),
        ((*(str(n) for n in range(26)), "red"), "27 options, but there are 26 letters"),
    ],
)
def test_records_without_usable_options_are_refused(options: tuple, words: str) -> None:
    with pytest.raises(DataError) as error:
        Choice(letters=True).check([record("red", options=options, row=3)])
    assert f"rows.jsonl:3: {words}" in str(error.value)


# ---------------------------------------------------------------------------------- the list


def test_tasks_are_known_by_their_exact_name() -> None:
    assert list(TASKS) == ["exact", "vqa", "anls", "choice", "caption", "wer", "pope", "chair"]
    for name in TASKS:
        task = make_task(name)
        assert task.name == name
        assert task.version >= 1
    with pytest.raises(
        UsageError, match=r"no task 'VQA': did you mean vqa\? choose from exact, vqa"
    ):
        make_task("VQA")


def test_options_of_another_task_are_refused() -> None:
    with pytest.raises(UsageError, match="--letters is for task choice, not for vqa"):
        make_task("vqa", letters=True)
    with pytest.raises(UsageError, match="--objects is for task chair, not for choice"):
        make_task("choice", objects=Path("objects.json"))


@pytest.mark.parametrize(
    ("task", "module"),
    [("anls", "rapidfuzz"), ("caption", "sacrebleu"), ("caption", "rouge_score.rouge_scorer"),
     ("caption", "pycocoevalcap.cider.cider"), ("wer", "jiwer")],
)  # fmt: skip
def test_a_missing_library_is_said(task: str, module: str, monkeypatch: Any) -> None:
    import importlib

    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == module:
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match="pip install '\\.\\[metrics\\]'") as error:
        make_task(task)
    assert module in str(error.value)


def test_tasks_without_libraries_import_none(monkeypatch: Any) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in (
            "jiwer",
            "sacrebleu",
            "rouge_score",
            "pycocoevalcap",
            "rapidfuzz",
        ):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in ("exact", "vqa", "choice", "pope", "chair"):
        make_task(name)
