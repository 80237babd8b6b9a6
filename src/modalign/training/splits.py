"""The splits: read, validated, split, tokenised, and checked against the encoders' limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from modalign.data.modalities import DEFAULT, modality_of
from modalign.data.readers import read_records
from modalign.data.readers.columns import unread
from modalign.data.records import Media, Record
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import Validated, validate
from modalign.errors import DataError
from modalign.models.encoders.loading import acceptance
from modalign.progress import Progress, within
from modalign.training.sources import DataFiles, Parts

FEW_RECORDS = 100  # validation records; with fewer, an accuracy is known to 10 points at best


@dataclass
class Splits:
    """Tokenised data.

    Attributes:
        train, val, evaluation: samples.
        val_source: origin of the validation data, for the report.
        dropped: broken records dropped under the quota.
        notes: notes for the report.
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
        """Return every distinct medium."""
        samples = [*self.train, *self.val, *self.evaluation]
        return list({medium: None for sample in samples for medium in sample.media})


def few_to_choose_by(records: int) -> str | None:
    """Return a warning about too few validation records; None if there are enough."""
    if records >= FEW_RECORDS:
        return None
    points = 100 * min(
        1.0, 0.98 / math.sqrt(max(records, 1))
    )  # half of a 95 % interval around 50 %
    return (
        f"few validation records ({records}): an accuracy on them is known only to about {points:.0f} points "
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
    """Read one of the files and open all its media.

    Raises:
        DataError: more records are broken than may be skipped.
    """
    found = read_records(
        path, media_root=files.media_root, modalities=modalities, columns=files.columns
    )
    tell = within(f"checking {name}", progress)
    return validate(found, modalities=modalities, skip_broken=skip_broken, progress=tell)


def noted_records(
    files: DataFiles,
    name: str,
    path: str,
    notes: list[str],
    progress: Progress | None = None,
    modalities: Sequence[str] = DEFAULT,
) -> Validated:
    """Read one of the files within its quota of broken records, and note what was left out or not read.

    Raises:
        DataError: more records are broken than may be skipped.
    """
    records, report = checked_records(files, name, path, files.skip_broken, progress, modalities)
    notes.extend(unread(records))
    if report.dropped:
        notes.append(
            f"{report.dropped} broken records of {name} ({path}) were dropped under the quota."
        )
    return Validated(records, report)


def usable_records(
    files: DataFiles,
    name: str,
    path: str,
    notes: list[str],
    progress: Progress | None = None,
    modalities: Sequence[str] = DEFAULT,
) -> list[Record]:
    """Return the records of :func:`noted_records`.

    Raises:
        DataError: there are none, or more are broken than may be skipped.
    """
    records, _ = noted_records(files, name, path, notes, progress, modalities)
    if not records:
        raise DataError(f"{name} has no usable records ({path})")
    return records


def load_splits(
    files: DataFiles,
    tokenizer: Any,
    progress: Progress | None = None,
    modalities: Sequence[str] = DEFAULT,
    seed: int = 0,
) -> Splits:
    """Read, validate, split (as the seed says, where no validation data is given) and tokenise.

    Raises:
        DataError: more records are broken than allowed; the message lists file and row.
    """
    dropped = 0
    notes: list[str] = []

    def load(path: str | None, name: str) -> list[Record]:
        nonlocal dropped
        if path is None:
            return []
        records, report = noted_records(files, name, path, notes, progress, modalities)
        dropped += report.dropped
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
    """Drop records whose media exceed the encoders' limits: clips, series or sets of vectors too long.

    An encoder's limits come from the training data; media that exceed them are found here, before the
    run, and count as broken. Media of modalities without such limits (images) are not checked again.

    Raises:
        DataError: a split has more of them than may be skipped; the message lists file and row.
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
