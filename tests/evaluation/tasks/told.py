"""Records and outputs for scorers: no model is needed to judge what was said."""

from __future__ import annotations

from typing import Any

from modalign.data.records import Message, Record, Source
from modalign.evaluation.tasks.base import Output, Score, Task
from modalign.numbers.estimate import Estimate


def record(
    answer: str, *answers: str, row: int = 1, question: str = "what?", **fields: Any
) -> Record:
    """A question in text with its accepted answers; ``objects`` and the like become extra fields."""
    known = {name: fields.pop(name) for name in ("skill", "group", "options") if name in fields}
    turns = (Message("user", (question,)), Message("assistant", (answer,)))
    return Record(
        f"r{row}", turns, Source("rows.jsonl", row), answers=answers, extra=fields, **known
    )


def judged(task: Task, pairs: list[tuple[Record, str]]) -> tuple[list[Score], dict[str, Estimate]]:
    """Scores and measures of what was said about records."""
    records = [record for record, _ in pairs]
    task.check(records)
    scores = task.score(records, [Output(text) for _, text in pairs])
    return scores, task.measures(scores, [None] * len(records))
