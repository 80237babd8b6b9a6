"""What a pruning calibrates, trains, chooses and judges on: parts of one file, or of the model's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.compression.pruning.config import PruneConfig
from modalign.data.corpus import is_corpus
from modalign.data.records import Message, Record, Source
from modalign.data.splits import split_validation
from modalign.data.supervision import Sample
from modalign.errors import DataError
from modalign.lengths import declared_length
from modalign.models.sampling import own_samples
from modalign.models.saved import OpenedModel
from modalign.progress import Progress
from modalign.training.tuning import read_samples

OWN = 192  # samples of the model, where no data are given
MOST = 512  # samples that scores are measured on, and that models are judged on
HELD_OUT, VALIDATION = 0.25, 1 / 6  # shares: of all samples, and of the rest


@dataclass(frozen=True)
class Texts:
    """Samples by what they are for; no document and no medium is in two of them.

    Attributes:
        calibration: scores are measured on the first ones, and recovery trains on all.
        validation: candidates are chosen by these; empty unless the form is auto.
        held_out: models are judged by these alone.
        task: of the evaluation file.
        plain: whether the first three are windows of plain text, in which nothing is an answer.
    """

    calibration: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    task: list[Sample]
    plain: bool

    @property
    def scored(self) -> list[Sample]:
        """What scores are measured on."""
        return self.calibration[:MOST]


def read_texts(config: PruneConfig, opened: OpenedModel, progress: Progress | None) -> Texts:
    """Read or sample the data, and split them.

    Raises:
        DataError: they cannot be used, or are too few to be split.
    """
    limit = declared_length(opened.model.language_model.config) or config.length
    length = min(config.length, limit)
    plain = config.data is None or is_corpus(Path(config.data))
    if config.data is None:
        samples = _own(opened, length, config.seed)
    else:
        samples = read_samples(Path(config.data), opened, length=length, progress=progress)
    task = []
    if config.evaluation is not None:
        task = read_samples(Path(config.evaluation), opened, length=length, progress=progress)
    chosen = config.form == "auto"
    name = config.data or "the model's samples"
    if plain:
        parts = _by_document(samples, config.seed, chosen, str(name))
    else:
        parts = _by_medium(samples, config.seed, chosen)
    return Texts(parts[0], parts[1], parts[2][:MOST], task[:MOST], plain)


Parts = tuple[list[Sample], list[Sample], list[Sample]]


def _by_document(samples: Sequence[Sample], seed: int, validated: bool, name: str) -> Parts:
    """Windows of one document stay together if there are enough documents."""
    least = 3 if validated else 2
    groups = [sample.record.group or sample.record.id for sample in samples]
    if len(set(groups)) < least:
        groups = [sample.record.id for sample in samples]
    order = np.random.default_rng(seed).permutation(list(dict.fromkeys(groups)))
    if len(order) < least:
        raise DataError(
            f"{name}: holds {len(order)} window{'' if len(order) == 1 else 's'} of text; calibrating"
            f"{', choosing' if validated else ''} and judging need {least} or more"
        )
    held = max(1, int(len(order) * HELD_OUT))
    after = held + (max(1, int((len(order) - held) * VALIDATION)) if validated else 0)
    places = {group: number for number, group in enumerate(order)}
    parts: Parts = ([], [], [])
    for sample, group in zip(samples, groups, strict=True):
        place = places[group]
        parts[2 if place < held else 1 if place < after else 0].append(sample)
    return parts


def _by_medium(samples: Sequence[Sample], seed: int, validated: bool) -> Parts:
    """Records about one medium stay together."""

    def split(given: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
        _, apart = split_validation([sample.record for sample in given], share, seed)
        ids = {id(record) for record in apart}
        held = [sample for sample in given if id(sample.record) in ids]
        return [sample for sample in given if id(sample.record) not in ids], held

    rest, held = split(samples, HELD_OUT)
    rest, validation = split(rest, VALIDATION) if validated else (rest, [])
    return rest, validation, held


def _own(opened: OpenedModel, length: int, seed: int) -> list[Sample]:
    """What the model writes, drawn from all of its distribution; nothing that stands for a medium."""
    bridges = opened.model.config.bridges or {}
    apart = {bridge["token_id"] for bridge in bridges.values()}
    rows = own_samples(
        opened.model.language_model,
        opened.tokenizer,
        OWN * length,
        seed=seed,
        length=length,
        top=None,
    )
    return [
        Sample(
            Record(
                id=f"own:{number}",
                messages=(Message("assistant", (opened.tokenizer.decode(row),)),),
                source=Source("own", number),
            ),
            np.asarray(row, dtype=np.int64),
            np.ones(len(row), dtype=bool),
        )
        for number, row in enumerate(rows, 1)
        if not apart & set(row)
    ]
