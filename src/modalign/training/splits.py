"""The splits: read, opened, split, tokenised, and fitted to what the encoders take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from modalign.data.modalities import DEFAULT, modality_of
from modalign.data.readers import read_records
from modalign.data.readers.columns import misspelt
from modalign.data.records import Media, Record
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import Validated, validate
from modalign.errors import DataError
from modalign.models.encoders.loading import acceptance
from modalign.progress import Progress, within
from modalign.training.sources import DataFiles, Parts

FEW_RECORDS = 100  # of validation; fewer know an accuracy to 10 points at best


@dataclass
class Splits:
    """Tokenised data.

    Attributes:
        train, val, evaluation: samples.
        val_source: where validation data came from, for the report.
        dropped: broken records dropped under the quota.
        notes: what the report must say.
        text: further records without media, for recipes that mix them in.
    """

    train: list[Sample]
    val: list[Sample]
    evaluation: list[Sample]
    val_source: str
    dropped: int
    notes: list[str]
    text: list[Sample] = field(default_factory=list)

    def media(self) -> list[Media]:
        """Every medium, once."""
        samples = [*self.train, *self.val, *self.evaluation]
        return list({medium: None for sample in samples for medium in sample.media})


def few_to_choose_by(records: int) -> str | None:
    """What so few validation records cannot decide; None where there are enough."""
    if records >= FEW_RECORDS:
        return None
    points = 100 * min(
        1.0, 0.98 / math.sqrt(max(records, 1))
    )  # half of a 95 % interval around 50 %
    return (
        f"few validation records ({records}): an accuracy among them is known to about {points:.0f} points "
        "either way, so they can hardly choose a method"
    )


def checked_records(
    files: DataFiles,
    name: str,
    path: str,
    skip_broken: float | str,
    progress: Progress | None = None,
    modalities: Sequence[str] = DEFAULT,
) -> Validated:
    """Read one of the files and open everything that it names.

    Raises:
        DataError: more broken records than may be skipped.
    """
    found = read_records(
        path, media_root=files.media_root, modalities=modalities, columns=files.columns
    )
    tell = within(f"checking {name}", progress)
    return validate(found, modalities=modalities, skip_broken=skip_broken, progress=tell)


def load_splits(
    files: DataFiles,
    tokenizer: Any,
    progress: Progress | None = None,
    modalities: Sequence[str] = DEFAULT,
    seed: int = 0,
) -> Splits:
    """Read, validate, split (as the seed says, where no validation data is given) and tokenise.

    Raises:
        DataError: broken data above the quota, every problem with file and row.
    """
    dropped = 0
    notes: list[str] = []

    def load(path: str | None, name: str) -> list[Record]:
        nonlocal dropped
        if path is None:
            return []
        records, report = checked_records(
            files, name, path, files.skip_broken, progress, modalities
        )
        dropped += report.dropped
        notes.extend(misspelt(records))
        if report.dropped:
            notes.append(
                f"{report.dropped} broken records of {name} ({path}) were dropped under the quota."
            )
        return records

    train, val = load(files.train, "train"), load(files.val, "val")
    evaluation = load(files.eval, "eval")
    source = "given"
    if files.val is None:
        train, val = split_validation(train, seed=seed)
        source = "a fixed tenth of the training data, media never on both sides"
    leaks = leakage(train, evaluation) if evaluation else []
    if leaks:
        notes.append(
            f"Media are in the training and in the evaluation data ({len(leaks)}), "
            f"{leaks[0].train} and {leaks[0].evaluation} among them."
        )
    return Splits(
        tokenise_all(train, tokenizer),
        tokenise_all(val, tokenizer),
        tokenise_all(evaluation, tokenizer),
        source,
        dropped,
        notes,
        tokenise_all(_without_media(load(files.text, "text")), tokenizer),
    )


def that_fit(
    splits: Splits, parts: Parts, files: DataFiles, progress: Progress | None = None
) -> Splits:
    """The splits without media that the encoders cannot take: clips, series, sets of vectors that are too long.

    An encoder's limits come from the training data; what exceeds them is found here, before the
    run, and counts as broken. Media of modalities without such limits (images) are not looked at again.

    Raises:
        DataError: more of them in a split than may be skipped, each with file and row.
    """
    limited = [name for name in parts.modalities if not modality_of(name).any_size]
    if not limited:
        return splits
    media = [medium for sample in splits.train for medium in sample.media]
    with torch.random.fork_rng():  # building an encoder draws weights
        specs = {each.modality: each.spec for each in parts.load_encoders(media, only=limited)}
    look = acceptance(specs)
    kept, dropped, notes = {}, splits.dropped, list(splits.notes)
    for name in ("train", "val", "evaluation"):
        kept[name] = samples = getattr(splits, name)
        if not any(m.modality in limited for sample in samples for m in sample.media):
            continue
        tell = within(f"fitting {name}", progress)
        records = [sample.record for sample in samples]
        found = validate(records, skip_broken=files.skip_broken, check=look, progress=tell)
        if found.report.dropped:
            usable = {record.id for record in found.records}
            kept[name] = [sample for sample in samples if sample.record.id in usable]
            dropped += found.report.dropped
            notes.append(
                f"{found.report.dropped} records of {name} were dropped under the quota: their media "
                "exceed what the encoders take."
            )
    return replace(splits, **kept, dropped=dropped, notes=notes)


def _without_media(records: list[Record]) -> list[Record]:
    for record in records:
        if any(True for _ in record.media()):
            raise DataError(
                f"{record.source}: data.text is for records without media; put this one into "
                "data.train"
            )
    return records
