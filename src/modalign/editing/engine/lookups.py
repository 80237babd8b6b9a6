"""Which token an edit is written at: the strategies for finding a prompt's lookup token.

A fact about a subject that the text names is looked up at the subject's last token (ROME, MEMIT,
PMET). Where only a picture shows the subject, the model has read it by the last visual token, or by the
last token of the question; small models often recall at the last token even with the subject in the text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from modalign.editing.engine.asking import Asked
from modalign.errors import UsageError

LookupName = Literal["auto", "subject", "last", "visual"]


class Lookup(ABC):
    """A strategy."""

    name: ClassVar[str]

    @abstractmethod
    def position(self, asked: Asked) -> int | None:
        """The lookup token's position; None where the prompt has no such token."""


class SubjectToken(Lookup):
    """The last token of the subject in the text."""

    name = "subject"

    def position(self, asked: Asked) -> int | None:
        """See :class:`Lookup`."""
        return asked.subject


class LastToken(Lookup):
    """The last token of the prompt: the one that predicts the answer."""

    name = "last"

    def position(self, asked: Asked) -> int | None:
        """See :class:`Lookup`."""
        return len(asked.ids) - 1


class VisualToken(Lookup):
    """The last visual token of the picture."""

    name = "visual"

    def position(self, asked: Asked) -> int | None:
        """See :class:`Lookup`."""
        return asked.picture


ORDERS: dict[str, tuple[Lookup, ...]] = {
    "auto": (SubjectToken(), LastToken()),
    "subject": (SubjectToken(),),
    "last": (LastToken(),),
    "visual": (VisualToken(), SubjectToken(), LastToken()),
}


def look_up(asked: Asked, wanted: LookupName, where: str) -> tuple[int, Lookup]:
    """The lookup token of a prompt, and the strategy that found it.

    Args:
        asked: the prompt.
        wanted: ``auto`` takes the subject where the text names it, else the last token; ``visual``
            takes the last visual token where there is a picture, else as ``auto``.
        where: the edit, for the message.

    Raises:
        UsageError: no strategy of this name finds a token.
    """
    for strategy in ORDERS[wanted]:
        position = strategy.position(asked)
        if position is not None:
            return position, strategy
    raise UsageError(
        f"{where}: --lookup {wanted} finds no token, as the text does not name the subject; "
        "use --lookup auto, last or visual"
    )
