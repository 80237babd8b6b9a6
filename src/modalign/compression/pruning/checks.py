"""A pruned folder loaded where modalign cannot be imported: logits and greedy answers as here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalign.data.records import Message, Record, Source
from modalign.data.supervision import Sample
from modalign.models.asking import conversation_of
from modalign.models.export.verify import Expected, tolerance_of, verify_in_clean_process
from modalign.models.open import open_model
from modalign.models.probe import observe
from modalign.models.processing import ModalignProcessor
from modalign.models.tool_text import ToolReader
from modalign.trust import trusted

TOKENS, ASKED, NEW = 24, 3, 8  # of a text, texts, and of an answer


def check_clean(folder: Path, samples: Sequence[Sample]) -> float:
    """Return the largest difference of logits.

    Raises:
        ModalignError: the folder does not load there, or answers otherwise.
    """
    with trusted():
        model, reader = open_model(folder)
    plain = isinstance(reader, ToolReader) or not hasattr(reader, "tokenizer")
    asked: list[Any]
    if plain:
        chosen = sorted(samples, key=lambda sample: -len(sample.ids))[:ASKED]
        length = min(TOKENS, *(len(sample.ids) for sample in chosen), TOKENS)
        asked = [sample.ids[:length].tolist() for sample in chosen]
        reader_: Any = None
    else:
        with_media = [sample.record for sample in samples if sample.media]
        records = with_media or [_question(sample) for sample in samples]
        asked = [conversation_of(record, reader) for record in records[:ASKED]]
        reader_ = reader
    own = isinstance(reader, ModalignProcessor)
    expected = Expected(
        folder,
        asked,
        observe(model, reader_, asked, NEW),
        tolerance=tolerance_of(model),
        max_new_tokens=NEW,
        form="text" if plain else "whole",
        dtype=model.dtype if own else None,
    )
    return verify_in_clean_process([expected])[0]


def _question(sample: Sample) -> Record:
    """A question about nothing seen, of a text that the model wrote."""
    text = next((m.text for m in sample.record.messages), "")[:80]
    return Record("question", (Message("user", (text or "?",)),), Source("own", 0))
