"""An edit as the rows that a model is run on: its rewriting prompts in context, its target, its KL prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modalign.editing.edits import Edit
from modalign.editing.engine.forward import Row

KL_PROMPT = "{} is a"  # filled with the subject; what the model says of it in general must stay


@dataclass(frozen=True)
class Request:
    """One edit, tokenised.

    Attributes:
        edit: the edit it was made from.
        prompts: the rewriting prompts as rows, the bare one first.
        groups: number of the group each prompt belongs to. Keys are averaged within groups first, so
            that the bare prompt weighs as much as all contexts together (MEMIT's released code).
        shares: the weight of each prompt's loss; they sum to 1.
        target: ids of the new answer.
        kl: the row on which the model must not change, read at its lookup token; None for an
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
        """The bare prompt followed by the target without its last token: here the target is predicted."""
        return self.prompts[0].followed_by(self.target[:-1])

    @property
    def predicting(self) -> range:
        """Positions of ``continued`` that predict the target's tokens."""
        first = len(self.prompts[0]) - 1
        return range(first, first + len(self.target))

    @property
    def reach(self) -> int:
        """Tokens from the lookup token to the last predicting one, in the longest prompt."""
        return max(len(row) - row.lookup for row in self.prompts) + len(self.target) - 1


def owners(requests: Sequence[Request]) -> tuple[int, ...]:
    """Return the number of each request's edit; the requests of one edit are adjacent."""
    numbers: list[int] = []
    before: Edit | None = None
    for request in requests:
        same = before is not None and request.edit is before
        numbers.append((numbers[-1] if numbers else -1) + (not same))
        before = request.edit
    return tuple(numbers)
