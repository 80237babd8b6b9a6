"""What a comparison judges answers by: exact match, or the score per question of an ``eval`` task.

Exact match needs one forward pass (:mod:`modalign.evaluation.scoring`). Other tasks are asked as ``modalign eval``
asks them: greedy answers are generated, or the options offered are scored by likelihood. Learning-rate trials and
learning curves are always of loss and exact match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modalign.data.records import Message, Record
from modalign.data.supervision import Sample, tokenise
from modalign.errors import DataError, UsageError, choose
from modalign.evaluation.generation import generate_answers
from modalign.evaluation.guessing import BlindGuess
from modalign.evaluation.scoring import Scores, score
from modalign.evaluation.tasks import TASKS, make_task
from modalign.evaluation.tasks.base import OptionScore, Output, Task
from modalign.training.staged import Staged

EXACT = "exact"
NEW_TOKENS = 32  # of a generated answer, as in modalign eval


def metric_names() -> list[str]:
    """Tasks that score every question for itself, from 0 to 1."""
    return [name for name, task in TASKS.items() if task.per_question]


@dataclass(frozen=True)
class Metric:
    """A way of judging answers.

    Attributes:
        name: the task's.
        task: the task; None for exact match.
    """

    name: str
    task: Task | None

    @classmethod
    def named(cls, name: str) -> Metric:
        """Return the metric with this name.

        Raises:
            UsageError: there is none, or its task has no score of a single question.
        """
        if name in TASKS and not TASKS[name].per_question:
            raise UsageError(
                f"the metric {name!r} is of whole files, and a comparison needs a score from 0 to 1 of every "
                f"question: choose {', '.join(metric_names())}"
            )
        if name not in TASKS:
            raise UsageError(f"no metric {name!r}: {choose(name, metric_names())}")
        return cls(name, None if name == EXACT else make_task(name))

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        if self.task is None:
            return "exact match"
        return self.task.headline if self.name != "choice" else "the likeliest of the options"

    @property
    def measure(self) -> str:
        """What its mean is called."""
        return "accuracy" if self.task is None or self.name == "choice" else self.task.headline

    def check(self, samples: Sequence[Sample]) -> None:
        """See, before anything trains, that every question can be judged.

        Raises:
            DataError: names file, row and problem.
        """
        if self.task is not None:
            self.task.check([sample.record for sample in samples])

    def judge(self, session: Staged, samples: Sequence[Sample]) -> Scores:
        """Score a model's answers to all samples; ``correct`` is the score of each, 0 to 1."""
        # As answers begin in the data, since a template may add a space or a capital.
        yes = {
            int(sample.ids[sample.prompt_length])
            for sample in samples
            if sample.record.answer.strip().casefold() == "yes"
        }
        found = score(session.model, samples, session.collator, session.device, yes_tokens=yes)
        if self.task is None or not samples:
            return found
        outputs = (
            self._likelihoods(session, samples)
            if self.task.by_likelihood
            else self._answers(session, samples)
        )
        return replace(found, correct=self._qualities([s.record for s in samples], outputs))

    def chance(self, train: Sequence[Sample], judged: Sequence[Sample]) -> list[float]:
        """Return the expected score of a uniform blind guess per question; 0 where it is not known."""
        records = [sample.record for sample in judged]
        guess = BlindGuess.of(sample.record for sample in train)
        known = guess.chance(records) if self.task is None else self.task.chance(records, guess)
        return [share or 0.0 for share in known or [None] * len(records)]

    def majority(self, train: Sequence[Sample], judged: Sequence[Sample]) -> list[float]:
        """Return the score of the training data's most frequent answer to each question."""
        records = [sample.record for sample in judged]
        said = BlindGuess.of(sample.record for sample in train).majority(records)
        if self.task is None:
            return [float(r.answer == text) for r, text in zip(records, said, strict=True)]
        task = self.task
        outputs = [task.said(record, text) for record, text in zip(records, said, strict=True)]
        return self._qualities(records, outputs).tolist()

    def _qualities(self, records: Sequence[Record], outputs: Sequence[Output]) -> np.ndarray:
        assert self.task is not None
        scores = self.task.score(records, outputs)
        return np.array([self.task.quality(each) for each in scores], dtype=float)

    def _answers(self, session: Staged, samples: Sequence[Sample]) -> list[Output]:
        tokenizer = session.processor.tokenizer
        texts = generate_answers(session.model, session.collator, samples, tokenizer, NEW_TOKENS)
        return [Output(text) for text in texts]

    def _likelihoods(self, session: Staged, samples: Sequence[Sample]) -> list[Output]:
        """Score every option as the answer to its question."""
        assert self.task is not None
        tokenizer = session.processor.tokenizer
        offered = [self.task.offered(sample.record) for sample in samples]
        answered = [
            replace(tokenise(_answered(sample.record, option), tokenizer), media=sample.media)
            for sample, options in zip(samples, offered, strict=True)
            for option in options
        ]
        found = score(session.model, answered, session.collator, session.device)
        values = iter(zip(found.loss.tolist(), found.tokens.tolist(), strict=True))
        return [
            Output(options=tuple(OptionScore(o, -loss, n) for o, (loss, n) in zip(options, values)))  # noqa: B905
            for options in offered
        ]


EXACT_MATCH = Metric(EXACT, None)


def _answered(record: Record, option: str) -> Record:
    if not record.messages or record.messages[-1].role != "assistant":
        raise DataError(f"{record.source}: has no answer")
    return replace(record, messages=(*record.messages[:-1], Message("assistant", (option,))))
