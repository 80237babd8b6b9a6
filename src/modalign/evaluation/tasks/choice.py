"""Multiple choice by log-likelihood over the options offered; nothing is generated.

The option with the largest log-likelihood after the question wins: in one measure the sum over its tokens (end
mark included, if the chat template has one), in the other that sum per UTF-8 byte of the option, which does not
favour short options. Ties count as wrong.
"""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modalign.data.records import Message, Record
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.tasks.base import (
    MOST_FREQUENT,
    Groups,
    OptionScore,
    Output,
    Score,
    Task,
    most_frequent_outputs,
)
from modalign.evaluation.tasks.exact import plain
from modalign.numbers.estimate import Estimate
from modalign.numbers.shares import share

LETTERS = string.ascii_uppercase


class Choice(Task):
    """Accuracy over the options offered.

    Args:
        letters: show the options with letters, in a random order per record, and score the letters;
            otherwise ask the question unchanged and score the options' own words.
        seed: of this order and of intervals.
    """

    name = "choice"
    by_likelihood = True
    headline = "accuracy (summed)"
    guessed = ("accuracy (summed)", "accuracy (per byte)")
    advice = 'write the options as a list in the field "options", the right one also as the answer'

    def __init__(self, *, letters: bool = False, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.letters = letters

    def problem(self, record: Record) -> str | None:
        """Fewer than two options, two equal ones, or none that is the expected answer."""
        options = [plain(option) for option in record.options]
        if len(options) < 2:
            return f"{len(options)} options, not two or more"
        if len(set(options)) < len(options):
            return "two options are the same"
        if self.letters and len(options) > len(LETTERS):
            return f"{len(options)} options, but there are {len(LETTERS)} letters"
        if plain(record.answer) not in options:
            return f"the answer {record.answer!r} is not one of the options"
        return None

    def shown(self, record: Record) -> tuple[str, ...]:
        """Return the options in the order shown; with letters it depends only on the seed and the record id."""
        if not self.letters:
            return record.options
        digest = hashlib.sha256(f"{self.seed}:{record.id}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(
            len(record.options)
        )
        return tuple(record.options[place] for place in order)

    def asked(self, record: Record) -> Record:
        """With letters, add one line per option to the last question."""
        if not self.letters:
            return record
        lines = [f"{letter}. {o}" for letter, o in zip(LETTERS, self.shown(record), strict=False)]
        text = "\n" + "\n".join([*lines, "Answer with the letter of the right option."])
        *before, question, answer = record.messages
        asked = Message(question.role, (*question.parts, text))
        return replace(record, messages=(*before, asked, answer))

    def offered(self, record: Record) -> tuple[str, ...]:
        """Return the letters, or the options themselves."""
        return tuple(LETTERS[: len(record.options)]) if self.letters else record.options

    def score_one(self, record: Record, output: Output) -> Score:
        """Score 1 if the right option has the largest summed log-likelihood."""
        shown = self.shown(record)
        right = [plain(option) for option in shown].index(plain(record.answer))
        summed = _likeliest(output.options, lambda option: option.loglikelihood)
        # All letters have the same length, so both numbers are the same.
        per_byte = _likeliest(output.options, lambda o: o.loglikelihood / len(o.text.encode()))
        return Score(
            float(summed == right),
            "" if summed is None else shown[summed],
            {
                "per_byte": float(per_byte == right),
                "shown": list(shown),
                "loglikelihoods": [option.loglikelihood for option in output.options],
                "tokens": [option.tokens for option in output.options],
            },
        )

    def measures(self, scores: Sequence[Score], groups: Groups) -> dict[str, Estimate]:
        """Accuracy by the sum and by the sum per byte."""
        return {
            "accuracy (summed)": self.share(scores, groups),
            "accuracy (per byte)": share(
                [score.counts["per_byte"] == 1 for score in scores], groups
            ),
        }

    def constants(self, records: Sequence[Record]) -> dict[str, list[Output]]:
        """Choose the skill's most frequent right option wherever it is offered."""
        said = most_frequent_outputs(records)
        rows = [self.said(record, each.text) for record, each in zip(records, said, strict=True)]
        return {MOST_FREQUENT: rows}

    def said(self, record: Record, text: str) -> Output:
        """Return likelihoods that are all on one option."""
        values = [0.0 if plain(o) == plain(text) else -math.inf for o in self.shown(record)]
        offered = zip(self.offered(record), values, strict=True)
        return Output(options=tuple(OptionScore(option, value, 1) for option, value in offered))

    def chance(self, records: Sequence[Record], guess: BlindGuess) -> list[float]:
        """Return one over the number of options."""
        return [1 / len(record.options) for record in records]

    def settings(self) -> dict[str, Any]:
        """How options were shown."""
        return {"letters": self.letters, "seed": self.seed}


def _likeliest(options: Sequence[OptionScore], value: Callable[[OptionScore], float]) -> int | None:
    """Index of the largest value; None for a tie."""
    values = [value(option) for option in options]
    best = max(values)
    return values.index(best) if values.count(best) == 1 else None
