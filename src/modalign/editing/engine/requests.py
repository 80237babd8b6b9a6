"""An edit as the rows a model is run on: its rewriting prompts in context, its target, its KL prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modalign.editing.edits import Edit
from modalign.editing.engine.forward import Row
from modalign.editing.engine.tokens import encode_prompt, encode_target

KL_PROMPT = "{} is a"  # of the subject; what the model says of it in general shall stay


@dataclass(frozen=True)
class Request:
    """One edit, tokenised.

    Attributes:
        edit: what was asked for.
        prompts: the rewriting prompts as rows, the bare one first.
        groups: number of the group each prompt belongs to: keys are averaged within groups first, so
            that the bare prompt weighs as much as all contexts together (MEMIT's released code).
        shares: what each prompt's loss counts; they sum to 1.
        target: ids of the new answer.
        kl: the row on which the model must stay what it is, read at its lookup token; None for an
            edit whose subject is not in the text.
        lookup: names of the strategies that found the lookup tokens, for the record.
    """

    edit: Edit
    prompts: tuple[Row, ...]
    groups: tuple[int, ...]
    shares: tuple[float, ...]
    target: tuple[int, ...]
    kl: Row | None
    lookup: str = "subject"

    @property
    def continued(self) -> Row:
        """The bare prompt with the target but its last token: where the target's tokens are read."""
        bare = self.prompts[0]
        return Row(bare.ids + self.target[:-1], bare.lookup, bare.embeds)

    @property
    def predicting(self) -> range:
        """Positions of ``continued`` that predict the target's tokens."""
        first = len(self.prompts[0]) - 1
        return range(first, first + len(self.target))

    @property
    def reach(self) -> int:
        """Tokens from the lookup token to the last one that predicts, in the longest prompt."""
        return max(len(row) - row.lookup for row in self.prompts) + len(self.target) - 1


def owners(requests: Sequence[Request]) -> tuple[int, ...]:
    """Number of each request's edit; the requests of one edit follow each other."""
    numbers: list[int] = []
    before: Edit | None = None
    for request in requests:
        same = before is not None and request.edit is before
        numbers.append((numbers[-1] if numbers else -1) + (not same))
        before = request.edit
    return tuple(numbers)


def tokenise(tokenizer: Any, edit: Edit, contexts: Sequence[str]) -> Request:
    """Put an edit's prompt after nothing and after each context, and tokenise.

    Args:
        tokenizer: the model's.
        edit: with its subject in the prompt, or without a subject (the last token is looked up).
        contexts: sentences; each is followed by ``". "`` and the prompt.

    Raises:
        DataError: the subject cannot be found, or a target has no tokens.
    """
    rows = []
    for context in ("", *contexts):
        before = f"{context}. " if context else ""
        at = None if edit.subject_at is None else edit.subject_at + len(before)
        prompt = encode_prompt(tokenizer, before + edit.prompt, edit.subject, at)
        rows.append(Row(prompt.ids, prompt.lookup))
    kl = None
    if edit.subject:
        prompt = encode_prompt(tokenizer, KL_PROMPT.replace("{}", edit.subject), edit.subject, 0)
        kl = Row(prompt.ids, prompt.lookup)
    return Request(
        edit=edit,
        prompts=tuple(rows),
        groups=(0, *[1] * len(contexts)),
        shares=(1 / len(rows),) * len(rows),
        target=encode_target(tokenizer, edit.target, edit.prompt),
        kl=kl,
    )
