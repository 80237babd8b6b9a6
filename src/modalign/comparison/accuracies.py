"""Accuracies of all methods of a comparison together, since they share an estimate of the spread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.comparison.hallucination import measure, yes_no_questions
from modalign.comparison.results import MethodResult
from modalign.data.supervision import Sample
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap

Answers = Callable[[str, str], np.ndarray]  # method, kind of answers -> (S, n)


@dataclass(frozen=True)
class Asked:
    """The questions used for scoring.

    Attributes:
        samples: all of them.
        groups: (n,) labels of questions by image; they are resampled together.
        trained: (n,) False for skills absent from training, which measure transfer.
        kind: ``eval``, or ``val`` without evaluation data.
    """

    samples: Sequence[Sample]
    groups: list[str | None]
    trained: np.ndarray
    kind: str

    def groups_at(self, mask: np.ndarray) -> list[str | None]:
        """Labels of some of the questions."""
        return [group for group, kept in zip(self.groups, mask, strict=True) if kept]


def untrained(methods: Mapping[str, MethodResult]) -> set[str]:
    """Return methods without trainable parts, which give the same result every time."""
    return {name for name, method in methods.items() if method.trainable_parameters == 0}


def add_accuracies(methods: Mapping[str, MethodResult], answers: Answers, asked: Asked) -> None:
    """Add every method's accuracies: overall, by skill, without its media, on yes/no questions.

    Args:
        methods: finished ones by name; modified in place.
        answers: what they answered.
        asked: the questions.
    """
    if not methods:
        return
    trained, kind, fixed = asked.trained, asked.kind, untrained(methods)
    groups, skills = asked.groups_at(trained), [each.record.skill for each in asked.samples]
    labels = [skill or None for skill, kept in zip(skills, trained, strict=True) if kept]
    correct = {name: answers(name, kind) for name in methods}
    seen = {name: found[:, trained] for name, found in correct.items()}
    drawn = hierarchical_bootstrap(seen, groups=groups, skills=labels, fixed=fixed)
    for name, method in methods.items():
        method.accuracy_interval = drawn.estimate(name)
        method.accuracy = method.accuracy_interval.value
        method.skills = {skill: part.estimate(name) for skill, part in drawn.skills.items()}
        method.val_accuracy = float(answers(name, "val").mean())
    if kind != "eval":
        return
    if (~trained).any():
        other = {name: found[:, ~trained] for name, found in correct.items()}
        for name, found in estimate_means(
            other, groups=asked.groups_at(~trained), fixed=fixed
        ).items():
            methods[name].transfer = found
    _add_gains(methods, answers, seen, asked, fixed)
    _add_yes_no(methods, answers, correct, asked, fixed)


def _add_gains(
    methods: Mapping[str, MethodResult],
    answers: Answers,
    seen: Mapping[str, np.ndarray],
    asked: Asked,
    fixed: Collection[str],
) -> None:
    """Add the losses without the medium and the accuracies before the first step."""
    groups = asked.groups_at(asked.trained)
    for kind in ("blank", "shuffled"):
        lost = {name: own - answers(name, kind)[:, asked.trained] for name, own in seen.items()}
        gains = estimate_means(lost, groups=groups, fixed=fixed, unit="difference of shares")
        for name, gain in gains.items():
            setattr(methods[name], f"image_gain_{kind}", gain)
    before = {name: answers(name, "untrained")[:, asked.trained] for name in methods}
    for name, found in estimate_means(before, groups=groups, fixed=fixed).items():
        methods[name].untrained_accuracy = found


def _add_yes_no(
    methods: Mapping[str, MethodResult],
    answers: Answers,
    correct: Mapping[str, np.ndarray],
    asked: Asked,
    fixed: Collection[str],
) -> None:
    questions = yes_no_questions(asked.samples, asked.groups, asked.trained)
    if questions is None:
        return
    places = questions.places
    right = {name: own[:, places] for name, own in correct.items()}
    said_yes = {name: answers(name, "yes")[:, places] for name in methods}
    for name, found in measure(questions, right, said_yes, fixed).items():
        methods[name].hallucination = found
