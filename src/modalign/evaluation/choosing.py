"""Choose among options by likelihood: shown with letters in every order asked for, and by their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from modalign.data.records import Media, Message, Record, Source
from modalign.errors import UsageError
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.tasks.base import OptionScore
from modalign.evaluation.tasks.choice import Choice

ORDERS = 4


@dataclass(frozen=True)
class Offered:
    """An option and what a model makes of it.

    Attributes:
        option: its text.
        probability: among the letters offered, mean over orders.
        low, high: the same in the orders where it is least and most.
        loglikelihood: of its own words as the answer, in nats.
        per_byte: the same per UTF-8 byte.
    """

    option: str
    probability: float
    low: float
    high: float
    loglikelihood: float
    per_byte: float


@dataclass(frozen=True)
class Chosen:
    """A choice among options.

    Attributes:
        answer: the option of the largest mean probability, the first of equal ones.
        by_words: that of the largest log-likelihood per byte.
        agreement: share of orders whose likeliest letter is the answer.
        orders: how many were asked.
        options: in the order given.
    """

    answer: str
    by_words: str
    agreement: float
    orders: int
    options: tuple[Offered, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


def choose(
    model: Any,
    reader: Any,
    question: str,
    options: Sequence[str],
    media: Sequence[Media] = (),
    *,
    orders: int = ORDERS,
    seed: int = 0,
) -> Chosen:
    """Choose one option as the answer to a question; the same call gives the same answer.

    Args:
        model, reader: as :func:`modalign.models.open.open_model` gives them.
        question: the question.
        options: two or more, all different.
        media: before the question.
        orders: in how many orders they are shown; each moves every option on by one letter.
        seed: of the first order.

    Raises:
        UsageError: options that cannot be chosen among.
    """
    turn = Message("user", (*media, question))
    record = Record("question", (turn,), Source("the question", 1), options=tuple(options))
    return choose_all(model, reader, [record], orders=orders, seed=seed)[0]


def choose_all(
    model: Any, reader: Any, records: Sequence[Record], *, orders: int = ORDERS, seed: int = 0
) -> list[Chosen]:
    """Choose among each record's options.

    Raises:
        UsageError: a record's options cannot be chosen among; the message names it.
    """
    task = Choice(letters=True, seed=seed)
    given = [_answered(record) for record in records]
    for record in given:
        if wrong := task.problem(record):
            raise UsageError(f"{record.source}: {wrong}")
    turned = [_turned(record, number) for record in given for number in range(orders)]
    found = score_options(
        model,
        reader,
        [task.asked(each) for each in turned],
        [task.offered(each) for each in turned],
    )
    shown = [
        dict(zip(task.shown(each), _shares(scores), strict=True))
        for each, scores in zip(turned, found, strict=True)
    ]
    words = score_options(model, reader, given, [record.options for record in given])
    return [
        _chosen(shown[place * orders : (place + 1) * orders], own)
        for place, own in enumerate(words)
    ]


def _answered(record: Record) -> Record:
    """The record with some answer, which likelihoods replace."""
    before = record.messages
    if before[-1].role == "assistant":
        before = before[:-1]
    answer = Message("assistant", (record.options[0] if record.options else "?",))
    return replace(record, messages=(*before, answer))


def _turned(record: Record, by: int) -> Record:
    start = by % len(record.options)
    return replace(record, options=(*record.options[start:], *record.options[:start]))


def _shares(scores: Sequence[OptionScore]) -> list[float]:
    values = np.array([score.loglikelihood for score in scores])
    shares = np.exp(values - values.max())
    return list((shares / shares.sum()).tolist())


def _chosen(orders: Sequence[dict[str, float]], words: Sequence[OptionScore]) -> Chosen:
    offered = []
    for score in words:
        shares = [order[score.text] for order in orders]
        per_byte = score.loglikelihood / len(score.text.encode())
        mean = float(np.mean(shares))
        offered.append(
            Offered(score.text, mean, min(shares), max(shares), score.loglikelihood, per_byte)
        )
    answer = max(offered, key=lambda each: each.probability).option
    firsts = [max(order, key=lambda option: order[option]) for order in orders]
    return Chosen(
        answer=answer,
        by_words=max(offered, key=lambda each: each.per_byte).option,
        agreement=firsts.count(answer) / len(orders),
        orders=len(orders),
        options=tuple(offered),
    )
