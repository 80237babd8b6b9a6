"""What a model said to each prompt of each edit: the rows of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from modalign.editing.benchmarks.scoring import Question
from modalign.editing.edits import Edit

Kind = Literal["rewrite", "paraphrase", "neighbour"]
KINDS: tuple[Kind, ...] = ("rewrite", "paraphrase", "neighbour")


@dataclass(frozen=True)
class Asked:
    """One prompt of one edit.

    Attributes:
        edit: the edit's place in the list.
        kind: what the prompt is to the edit.
        question: the prompt with the answers that are scored.
        wanted: the answer it should have.
    """

    edit: int
    kind: Kind
    question: Question
    wanted: str


class Answer(BaseModel):
    """A model's answer to one prompt.

    Attributes:
        target: probability of the edit's target per token (geometric mean), 0 to 1.
        truth: the same of the right answer before the edit; None where it is not asked.
        success: whether the one that should be likelier is (CounterFact); None in zsRE.
        accuracy: share of the wanted answer's tokens that were the most likely, 0 to 1.
        says: the most likely tokens as text, teacher-forced with the wanted answer.
        generated: greedy continuation, where generation was asked for.
    """

    target: float | None = None
    truth: float | None = None
    success: bool | None = None
    accuracy: float
    says: str
    generated: str | None = None


class PromptRow(BaseModel):
    """One prompt, what should follow it, and what did before and after the edit."""

    kind: Kind
    prompt: str
    wanted: str
    after: Answer
    before: Answer | None = None
    image: str | None = None


class EditRow(BaseModel):
    """All prompts of one edit."""

    id: str
    source: str
    subject: str
    target: str
    truth: str | None
    prompts: list[PromptRow]

    @classmethod
    def of(cls, edit: Edit) -> EditRow:
        """The row of an edit, its prompts still to come."""
        return cls(
            id=edit.id,
            source=edit.source,
            subject=edit.subject,
            target=edit.target,
            truth=edit.truth,
            prompts=[],
        )


def fill_rows(
    edits: Sequence[Edit],
    asked: Sequence[Asked],
    after: Sequence[Answer],
    before: Sequence[Answer] | None = None,
) -> list[EditRow]:
    """One row per edit with all its prompts and answers."""
    rows = [EditRow.of(edit) for edit in edits]
    for place, one in enumerate(asked):
        row = PromptRow(
            kind=one.kind, prompt=one.question.prompt, wanted=one.wanted, after=after[place]
        )
        if before is not None:
            row.before = before[place]
        rows[one.edit].prompts.append(row)
    return rows
