"""Records and plain texts to train and to judge on, tokenised; what judges is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalign.data.corpus import is_corpus, read_corpus, windows
from modalign.data.curation.inputs import said
from modalign.data.curation.minhash import normalise
from modalign.data.splits import drawn_over_skills, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.errors import DataError
from modalign.mixtures.config import LoopConfig
from modalign.models.saved import open_composed
from modalign.progress import Progress
from modalign.training.splits import usable_records

WINDOW = 256  # tokens of a window of plain text


class Reading:
    """Reads files for the model that a configuration names.

    Attributes:
        notes: for the report.
    """

    def __init__(self, config: LoopConfig, progress: Progress | None = None) -> None:
        self.config, self.progress = config, progress
        self.notes: list[str] = []
        self.tokenizer: Any
        if config.model is not None:
            opened = open_composed(config.model)
            self.tokenizer = opened.tokenizer
            self.modalities = [each.modality for each in opened.encoders]
        else:
            assert config.parts is not None
            self.tokenizer = config.parts.load_llm().tokenizer
            self.modalities = config.parts.modalities

    def read(self, name: str, path: str) -> list[Sample]:
        """Read a file of records, or of plain text.

        Raises:
            DataError: it has no usable records, or too many broken ones.
        """
        if is_corpus(Path(path)):
            return windows(read_corpus(Path(path)), self.tokenizer, WINDOW)
        found = usable_records(
            self.config.data, name, path, self.notes, self.progress, self.modalities
        )
        return tokenise_all(found, self.tokenizer)

    def judging(self, name: str, path: str) -> list[Sample]:
        """Read what a model is judged on: at most ``held_records``, over all skills."""
        return self.limited(self.read(name, path))

    def held_out(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Return the samples to train on, and those held out, in whole groups."""
        _, held = split_validation([s.record for s in samples], self.config.held_out)
        kept = {id(record) for record in held}
        apart = [sample for sample in samples if id(sample.record) in kept]
        return [s for s in samples if id(s.record) not in kept], self.limited(apart)

    def limited(self, samples: Sequence[Sample]) -> list[Sample]:
        """Draw at most ``held_records``."""
        chosen = drawn_over_skills([s.record for s in samples], self.config.held_records)
        kept = {id(record) for record in chosen}
        return [sample for sample in samples if id(sample.record) in kept]


def without_overlap(
    train: Sequence[Sample], held: Sequence[Sample], what: str, notes: list[str]
) -> list[Sample]:
    """Leave out training samples that share a medium, or all of their text, with held-out ones.

    Args:
        train: to be trained on.
        held: that judge.
        what: they are, for messages.
        notes: gets a sentence if any were left out.

    Raises:
        DataError: none is left.
    """
    known = {key for sample in held for key in _keys(sample)}
    kept = [sample for sample in train if known.isdisjoint(_keys(sample))]
    gone = len(train) - len(kept)
    if not kept:
        raise DataError(
            f"all {len(train)} training records are in {what}, too: a model must be judged on other records"
        )
    if gone:
        first = next(s for s in train if not known.isdisjoint(_keys(s)))
        notes.append(
            f"{gone} of {len(train)} training records share a medium or their whole text with {what} and were "
            f"left out of every pool ({first.record.source} among them)."
        )
    return kept


def keys_of(samples: Sequence[Sample]) -> set[str]:
    """Return what samples are recognised by: media by content, and whole texts without media."""
    return {key for sample in samples for key in _keys(sample)}


def _keys(sample: Sample) -> list[str]:
    if sample.media:
        return [f"medium {medium.content_hash()}" for medium in sample.media]
    return [f"text {normalise(said(sample.record, 'text'))}"]
