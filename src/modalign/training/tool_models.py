"""The model folder of a tool method: a plain causal language model, and the tools whose text it reads."""

from __future__ import annotations

from pathlib import Path

from modalign.models.saved import save_language_model
from modalign.training.session import Session

CARD = """\
# A language model that reads the text of tools

The folder contains a plain causal language model and its tokenizer; `tools.json` describes the tools whose
text replaces media in the question. `modalign ask` and `modalign eval` run both together;
plain transformers loads only the language model.

{card}
"""


def save_with_tools(session: Session, folder: Path, card: str = "") -> None:
    """Write a tool method's model, and check that it loads with the same weights.

    Raises:
        ModalignError: the reloaded model differs.
    """
    assert session.method.tools is not None
    chain = session.method.tools.chain
    save_language_model(
        session.model.language_model,
        session.processor.tokenizer,
        folder,
        dtype=session.saved_dtype,
        card=CARD.format(card=card),
        tools=(session.parts.chain(chain), session.parts.modalities) if chain else None,
    )
