"""An edit: one fact to be changed, and what to measure around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Neighbour:
    """A question that an edit must leave alone: the full prompt, and its right answer if known.

    With ``image``, the question is asked about that picture.
    """

    prompt: str
    answer: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Edit:
    """One fact to be changed.

    Attributes:
        id: unique in its file.
        subject: the words that the fact is about; empty if only the image shows the subject.
        prompt: the full text that ``target`` continues, subject included ("The mother tongue of
            Danielle Darrieux is").
        subject_at: offset of the subject's first character in ``prompt``; None without a subject.
        target: the answer the model should give; no leading space.
        truth: the right answer before the edit, if known; CounterFact's scores compare with it.
        paraphrases: other full prompts of the same fact.
        neighbours: prompts that must keep their answers.
        generation_prompts: prompts for free generation about the subject.
        reference_texts: texts about the new target, for the consistency score.
        image: path of a picture that shows the subject.
        image_prompt: the question about the picture, where it differs from ``prompt`` ("which digit is
            this?" where ``prompt`` is "the digit {} is called").
        other_images: further pictures of the subject, used only to measure the edit.
        protocol: the kind of file it came from, which decides how ``eval`` scores it.
        source: ``file:line`` for messages.
    """

    id: str
    subject: str
    prompt: str
    subject_at: int | None
    target: str
    truth: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    image: str | None = None
    image_prompt: str | None = None
    other_images: tuple[str, ...] = ()
    protocol: Literal["counterfact", "zsre", "plain"] = "plain"
    source: str = ""

    @property
    def asked_of_image(self) -> str:
        """The question that is asked about the picture."""
        return self.image_prompt if self.image_prompt is not None else self.prompt

    @property
    def relation(self) -> str:
        """The prompt with ``{}`` for the subject; together with the subject it identifies the fact."""
        if self.subject_at is None:
            return self.prompt
        end = self.subject_at + len(self.subject)
        return self.prompt[: self.subject_at] + "{}" + self.prompt[end:]
