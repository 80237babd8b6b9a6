"""The same questions with other media: blank, another record's, one modality alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modalign.data.modalities import blank_like
from modalign.data.records import Media, Message, Record
from modalign.evaluation.scoring import exchanged

RIGHT, BLANK, SHUFFLED = "right media", "blank media", "shuffled media"


def passes_over(records: list[Record], modalities: Sequence[str]) -> dict[str, list[Record]]:
    """Return pass -> records: unchanged, and with blank and shuffled media if there are any.

    Records with several modalities are also asked with each alone, in a pass called ``image only``.
    """
    passes = {RIGHT: records}
    if any(True for record in records for _ in record.media()):
        passes |= {BLANK: blanked(records), SHUFFLED: shuffled(records)}
    return passes | {f"{m} only": kept for m in modalities if (kept := alone(m, records))}


def blanked(records: Sequence[Record]) -> list[Record]:
    """Replace every medium by a blank one of its kind."""
    return [with_other_media(r, [blank_like(medium) for medium in r.media()]) for r in records]


def shuffled(records: Sequence[Record]) -> list[Record]:
    """Give every record another record's media."""
    given = exchanged([tuple(record.media()) for record in records])
    return [with_other_media(record, media) for record, media in zip(records, given, strict=True)]


def alone(modality: str, records: Sequence[Record]) -> list[Record]:
    """Return records with this modality and others, without the others."""
    return [
        _without_others(modality, record)
        for record in records
        if is_mixed(record) and modality in {medium.modality for medium in record.media()}
    ]


def is_mixed(record: Record) -> bool:
    """Whether a record holds media of several modalities."""
    return len({medium.modality for medium in record.media()}) > 1


def _without_others(modality: str, record: Record) -> Record:
    messages = tuple(
        Message(
            m.role, tuple(p for p in m.parts if not isinstance(p, Media) or p.modality == modality)
        )
        for m in record.messages
    )
    return replace(record, messages=messages)


def with_other_media(record: Record, media: Sequence[Media]) -> Record:
    """Replace the record's media by these, in reading order."""
    queue = list(media)
    messages = tuple(
        Message(m.role, tuple(queue.pop(0) if isinstance(p, Media) else p for p in m.parts))
        for m in record.messages
    )
    return replace(record, messages=messages)
