"""Parts of a suite: their items, and what is measured of a model's answers. No part sees a model.

An answer is plain JSON, so that it can be kept and read back: of a question with options ``{"sums", "tokens"}``
(a log-likelihood in nats and a token count per option), of a problem a text, of a passage ``[nats, tokens]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from modalign.data.records import Source
from modalign.errors import DataError
from modalign.numbers.bootstrap import Floats, Groups

CHANCE, MAJORITY = "chance", "majority"
ORDERS = 5

Answer = Any
Kind = Literal["options", "written", "read"]


@dataclass(frozen=True)
class Question:
    """A question whose options are scored by likelihood.

    Attributes:
        source: file and row.
        prompt: the text that an option follows after a space.
        asked: the same as a turn of a chat.
        options: their texts.
        right: (options,) which are true.
        group: label of questions that depend on each other.
    """

    source: Source
    prompt: str
    asked: str
    options: tuple[str, ...]
    right: tuple[bool, ...]
    group: str | None = None


@dataclass(frozen=True)
class Problem:
    """A problem answered in writing, after examples.

    Attributes:
        source: file and row.
        prompt: examples and problem as one text.
        turns: the same as turns of a chat: question, answer, ..., question.
        question: the problem alone.
        answer: the right answer.
    """

    source: Source
    prompt: str
    turns: tuple[str, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A piece of text to read."""

    source: Source
    text: str


Item = Question | Problem | Passage


@dataclass(frozen=True)
class Measure:
    """What is measured of the answers.

    Attributes:
        name: of it.
        of: answers -> (n,) values, whose mean is the figure.
        constants: rows without a model, (n,) values each.
        groups: (n,) labels of values that depend on each other.
        unit: of the figure.
        over: what n counts.
        headline: whether it is tested.
        lower_is_better: whether less is better.
        by_order: answers -> (orders,) figures, one per order of the options.
        right: answers -> (n,) 0 or 1, where every value is right or wrong.
    """

    name: str
    of: Callable[[Sequence[Answer]], Floats]
    constants: Mapping[str, Floats] = field(default_factory=dict)
    groups: Groups | None = None
    unit: str = "share"
    over: str = "questions"
    headline: bool = False
    lower_is_better: bool = False
    by_order: Callable[[Sequence[Answer]], Floats] | None = None
    right: Callable[[Sequence[Answer]], Floats] | None = None


class Part(ABC):
    """A part of a suite.

    Attributes:
        kind: how it is asked.
        name: of it.
        items: what is asked.
        notes: what a reader of the figures should know.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str, items: Sequence[Any], notes: Sequence[str] = ()) -> None:
        self.name, self.items, self.notes = name, list(items), list(notes)

    @abstractmethod
    def measures(self, items: Sequence[Any]) -> list[Measure]:
        """Return what is measured of answers to these items."""


def check_options(questions: Sequence[Question]) -> None:
    """Refuse questions that cannot be scored.

    Raises:
        DataError: fewer than two options, equal ones, or none that is true; with file and row.
    """
    for question in questions:
        same = [" ".join(option.split()).casefold() for option in question.options]
        if len(same) < 2:
            raise DataError(f"{question.source}: {len(same)} options, not two or more")
        if len(set(same)) < len(same):
            twice = next(key for key in same if same.count(key) > 1)
            raise DataError(f"{question.source}: two options are equal: {twice!r}")
        if not any(question.right):
            raise DataError(f"{question.source}: no option is true")
        if all(question.right):
            raise DataError(f"{question.source}: every option is true")


def order_notes(name: str, questions: Sequence[Question], orders: int) -> list[str]:
    """Say so if the true option stands at one place throughout, which a tie would then reward."""
    places = {question.right.index(True) for question in questions}
    if len(places) > 1 or len(questions) < 2:
        return []
    where = "first" if places == {0} else f"at place {places.pop() + 1}"
    return [
        f"{name}: a true option stands {where} in all {len(questions)} questions of the file; the options were "
        f"shuffled ({orders} orders)."
    ]


def orders_of(question: Question, orders: int, seed: int) -> list[list[int]]:
    """Return seeded orders of a question's options, which depend on nothing but the seed and its row."""
    rng = np.random.default_rng([seed, question.source.row])
    return [rng.permutation(len(question.options)).tolist() for _ in range(orders)]


def likeliest(values: Sequence[float], order: Sequence[int]) -> int:
    """Return the option of the largest value: of equal ones, the first in this order."""
    return max(order, key=lambda place: values[place])


def chosen_right(
    questions: Sequence[Question], values: Sequence[Sequence[float]], orders: int, seed: int
) -> Floats:
    """Return (orders, n): whether the likeliest option is true; orders settle ties."""
    found = np.zeros((orders, len(questions)))
    for column, (question, own) in enumerate(zip(questions, values, strict=True)):
        for row, order in enumerate(orders_of(question, orders, seed)):
            found[row, column] = question.right[likeliest(own, order)]
    return found


def per_byte(question: Question, sums: Sequence[float]) -> list[float]:
    """Return log-likelihoods per UTF-8 byte of the option."""
    return [
        value / len(option.encode()) for value, option in zip(sums, question.options, strict=True)
    ]


def even_chance(questions: Sequence[Question]) -> Floats:
    """Return (n,) the share of options that are true."""
    return np.array([float(np.mean(question.right)) for question in questions])


Right = Callable[[Sequence[Answer]], Floats]  # answers -> (orders, n) of 0 or 1


def right_of(questions: Sequence[Question], *, normalised: bool, orders: int, seed: int) -> Right:
    """Return what finds whether the likeliest option is true, by the sum or per byte."""

    def right(answers: Sequence[Answer]) -> Floats:
        values = [
            per_byte(question, answer["sums"]) if normalised else answer["sums"]
            for question, answer in zip(questions, answers, strict=True)
        ]
        return chosen_right(questions, values, orders, seed)

    return right


def accuracy(name: str, right: Right, **said: Any) -> Measure:
    """Return the measure of a share of right choices, over all orders.

    Args:
        name: of the measure.
        right: see :func:`right_of`.
        said: further fields of the measure.
    """
    return Measure(
        name,
        of=lambda answers: right(answers).mean(axis=0),
        by_order=lambda answers: right(answers).mean(axis=1),
        right=lambda answers: right(answers)[0],
        **said,
    )
