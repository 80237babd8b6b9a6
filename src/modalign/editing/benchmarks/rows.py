"""What a model said to each prompt of each edit: the rows of reports."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Kind = Literal["rewrite", "paraphrase", "neighbour"]
KINDS: tuple[Kind, ...] = ("rewrite", "paraphrase", "neighbour")


class Answer(BaseModel):
    """A model's answer to one prompt.

    Attributes:
        target: probability of the edit's target per token (geometric mean), 0 to 1.
        truth: the same for the right answer before the edit; None where it is not asked for.
        success: whether the answer that should be likelier is (CounterFact); None in zsRE.
        accuracy: share of the wanted answer's tokens that were the most likely, 0 to 1.
        says: the most likely tokens as text, teacher-forced with the wanted answer.
        generated: greedy continuation, if generation was asked for.
    """

    target: float | None = None
    truth: float | None = None
    success: bool | None = None
    accuracy: float
    says: str
    generated: str | None = None


class PromptRow(BaseModel):
    """One prompt, what should follow it, and what followed it before and after the edit."""

    kind: Kind
    prompt: str
    wanted: str
    after: Answer
    before: Answer | None = None
    image: str | None = None


class EditRow(BaseModel):
    """All prompts of one edit; its own fields are those of the :class:`Edit`."""

    id: str
    source: str
    subject: str
    target: str
    truth: str | None
    prompts: list[PromptRow] = Field(default_factory=list)
