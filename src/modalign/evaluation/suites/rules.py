"""Surface rules: choose an option by how it looks. A score that they reach says nothing about truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from modalign.evaluation.suites.parts import Question
from modalign.numbers.bootstrap import Floats

NEGATION = re.compile(r"\b(?:no|not|nothing|none|never|nobody)\b|n['’]t\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

Rule = Callable[[Question], list[float]]


def holds_negation(text: str) -> bool:
    """Whether a text says no, not, nothing, none, never, nobody or n't."""
    return NEGATION.search(text) is not None


def _shared(question: Question) -> list[float]:
    asked = set(_WORD.findall(question.asked.casefold()))
    return [-float(len(asked & set(_WORD.findall(o.casefold())))) for o in question.options]


RULES: dict[str, Rule] = {
    "a negation": lambda q: [float(holds_negation(option)) for option in q.options],
    "longest option": lambda q: [float(len(option)) for option in q.options],
    "shortest option": lambda q: [-float(len(option)) for option in q.options],
    "fewest words of the question": _shared,
}


def by_rules(questions: Sequence[Question]) -> dict[str, Floats]:
    """Return rule -> (n,) chance that the chosen option is true; equal options share it."""
    return {
        name: np.array([_right(question, rule(question)) for question in questions])
        for name, rule in RULES.items()
    }


def _right(question: Question, values: Sequence[float]) -> float:
    best = max(values)
    return float(
        np.mean([r for r, value in zip(question.right, values, strict=True) if value == best])
    )
