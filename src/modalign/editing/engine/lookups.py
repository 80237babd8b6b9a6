"""Find the token that an edit is written at: a prompt's lookup token.

A fact about a subject that the text names is looked up at the subject's last token (ROME, MEMIT,
PMET). Where only a picture shows the subject, the model has read it by the last visual token, or by the
last token of the question; small models often recall at the last token even if the text names the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from modalign.editing.engine.asking import Asked
from modalign.errors import UsageError

LookupName = Literal["auto", "subject", "last", "visual"]
Token = Literal["subject", "last", "visual"]

POSITIONS: Mapping[Token, Callable[[Asked], int | None]] = {
    "subject": lambda asked: asked.subject,  # its last token in the text
    "last": lambda asked: len(asked.ids) - 1,  # the prompt's last, which predicts the answer
    "visual": lambda asked: asked.picture,  # the picture's last
}
ORDERS: Mapping[LookupName, tuple[Token, ...]] = {
    "auto": ("subject", "last"),
    "subject": ("subject",),
    "last": ("last",),
    "visual": ("visual", "subject", "last"),
}


def look_up(asked: Asked, wanted: LookupName, where: str) -> tuple[int, Token]:
    """Find the lookup token of a prompt: its position, and which token it is.

    Args:
        asked: the prompt.
        wanted: ``auto`` takes the subject if the text names it, else the last token; ``visual``
            takes the last visual token if there is a picture, else does as ``auto``.
        where: the edit, for the message.

    Raises:
        UsageError: the prompt has no such token.
    """
    for token in ORDERS[wanted]:
        position = POSITIONS[token](asked)
        if position is not None:
            return position, token
    raise UsageError(
        f"{where}: --lookup {wanted} finds no token, as the text does not name the subject; "
        "use --lookup auto, last or visual"
    )
