"""Choosing: letters in turned orders, averaged; the same answer every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from modalign.errors import UsageError
from modalign.evaluation import choosing
from modalign.evaluation.choosing import choose
from modalign.evaluation.tasks.base import OptionScore
from modalign.models.open import open_model


def test_a_model_with_a_favourite_letter_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """It always prefers A: over as many orders as options, every option gets the same."""

    def first(_: Any, __: Any, records: Sequence[Any], options: Sequence[Sequence[str]]) -> Any:
        return [
            tuple(OptionScore(o, math.log(8.0 if n == 0 else 1.0), 1) for n, o in enumerate(own))
            for own in options
        ]

    monkeypatch.setattr(choosing, "score_options", first)
    found = choose(None, None, "which?", ["red", "green", "blue"], orders=3)
    assert [each.probability for each in found.options] == pytest.approx([1 / 3] * 3)
    assert [(each.low, each.high) for each in found.options] == [pytest.approx((0.1, 0.8))] * 3
    assert (found.answer, found.agreement) == ("red", pytest.approx(1 / 3))


def test_the_answer_follows_the_option_and_not_its_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def sees(_: Any, __: Any, records: Sequence[Any], options: Sequence[Sequence[str]]) -> Any:
        lines = [record.messages[-2].text.splitlines() for record in records]
        return [
            tuple(OptionScore(o, float(f"{o}. green" in text or o == "green"), 1) for o in own)
            for own, text in zip(options, lines, strict=True)
        ]

    monkeypatch.setattr(choosing, "score_options", sees)
    found = choose(None, None, "which?", ["red", "green", "blue"], orders=5)
    green = math.e / (math.e + 2)
    assert (found.answer, found.by_words, found.agreement) == ("green", "green", 1)
    assert found.options[1].low == pytest.approx(green)
    assert found.options[1].high == pytest.approx(green)


def test_a_real_model_answers_the_same_twice(llm_folder: Callable[..., Path]) -> None:
    model, reader = open_model(llm_folder())
    first, second = (choose(model, reader, "is it odd?", ["yes", "no"], seed=3) for _ in range(2))
    assert first == second
    assert sum(each.probability for each in first.options) == pytest.approx(1)
    assert all(each.low <= each.probability <= each.high for each in first.options)
    assert first.summary()["orders"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "0 options"),
        (["a"], "1 options"),
        (["a", "A"], "the same"),
        (list(map(str, range(30))), "26"),
    ],
)
def test_what_offers_no_choice_is_refused(options: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(None, None, "which?", options)
