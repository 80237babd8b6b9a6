"""A blind guesser, which knows the training answers but sees no media.

Given options, it picks any of them; otherwise it guesses among the training answers to the same question, if
that was asked often, or else among all training answers. Columns that the model does not see (such as a skill)
do not help it, and neither do the evaluation rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign.data.readers import read_records
from modalign.data.records import Record
from modalign.errors import DataError
from modalign.files import write_atomically
from modalign.models.export.folder import TRAINING_ANSWERS
from modalign.strict_json import loads

OFTEN = 10  # times a question must occur in training for its answers to be kept separately
KEPT = 1000  # answers to one question saved by name in a model folder; the rest are only counted


def question_of(record: Record) -> str:
    """Return the last question of a record, normalised for comparison."""
    asked = [message.text for message in record.messages if message.role == "user"]
    return " ".join(asked[-1].split()).casefold() if asked else ""


@dataclass
class BlindGuess:
    """Training answers, to each frequent question and overall.

    Attributes:
        questions: question -> answer -> count.
        everything: the same over all questions.
        unnamed: question, or None for all -> number of distinct answers left out.
    """

    questions: dict[str, Counter[str]] = field(default_factory=dict)
    everything: Counter[str] = field(default_factory=Counter)
    unnamed: dict[str | None, int] = field(default_factory=dict)

    @classmethod
    def of(cls, training: Iterable[Record]) -> BlindGuess:
        """Count the answers of these training records."""
        found = cls()
        for record in training:
            found.questions.setdefault(question_of(record), Counter())[record.answer] += 1
            found.everything[record.answer] += 1
        found.questions = {q: c for q, c in found.questions.items() if c.total() >= OFTEN}
        return found

    def _known(self, record: Record) -> tuple[Counter[str], int]:
        question = question_of(record)
        if question in self.questions:
            return self.questions[question], self.unnamed.get(question, 0)
        return self.everything, self.unnamed.get(None, 0)

    def chance(self, records: Sequence[Record]) -> list[float | None]:
        """Return (n,) accuracies of a uniform guess; None if neither options nor training answers are known."""
        return [self._chance(record) for record in records]

    def _chance(self, record: Record) -> float | None:
        accepted = {record.answer, *record.answers}
        if record.options:
            return len(accepted & {*record.options}) / len({*record.options})
        answers, further = self._known(record)
        if not answers:
            return None
        return len(accepted & answers.keys()) / (len(answers) + further)

    def majority(self, records: Sequence[Record]) -> list[str]:
        """Return (n,) most frequent training answers to each question."""
        common = [self._known(record)[0].most_common(1) for record in records]
        return [found[0][0] if found else "" for found in common]

    def mean_chance(self, records: Sequence[Record]) -> float | None:
        """Return the mean accuracy of a uniform guess; None if it is unknown for any record."""
        known = [share for share in self.chance(records) if share is not None]
        return sum(known) / len(known) if known and len(known) == len(records) else None

    def save(self, folder: Path) -> None:
        """Save it to a model folder, for ``eval`` and ``diagnose``."""
        questions = {question: self._kept(question, c) for question, c in self.questions.items()}
        value = {"all": self._kept(None, self.everything), "questions": questions}
        write_atomically(
            folder / TRAINING_ANSWERS, json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        )

    def _kept(self, question: str | None, answers: Counter[str]) -> dict[str, Any]:
        further = max(len(answers) - KEPT, 0) + self.unnamed.get(question, 0)
        return {"answers": dict(answers.most_common(KEPT)), "further": further}


def blind_guess(folder: Path, train: str | None = None) -> BlindGuess:
    """Load a model's training answers from a training file, or else from the model folder.

    Args:
        folder: model folder; may hold no training answers.
        train: data file that the model was trained on.

    Raises:
        DataError: the file cannot be read, or the folder's is damaged.
    """
    if train is not None:
        return BlindGuess.of(read_records(train).records)
    path = folder / TRAINING_ANSWERS
    if not path.is_file():
        return BlindGuess()
    try:
        value = loads(path.read_bytes())
        parts: dict[str | None, Any] = {None: value["all"], **value["questions"]}
        questions = {q: Counter(part["answers"]) for q, part in value["questions"].items()}
        everything = Counter(value["all"]["answers"])
        unnamed = {question: int(part["further"]) for question, part in parts.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, or give --train") from None
    return BlindGuess(questions, everything, unnamed)
