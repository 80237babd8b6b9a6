"""``modalign diagnose``: every diagnostic of every modality of a saved model, in one pass over the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from modalign.data.readers import read_records
from modalign.data.readers.columns import unread
from modalign.data.records import Media, Record
from modalign.data.validation import validate
from modalign.errors import DataError
from modalign.evaluation.diagnosis.attention import AttentionMass
from modalign.evaluation.diagnosis.gap import Gap
from modalign.evaluation.diagnosis.lens import LogitLens
from modalign.evaluation.diagnosis.looking import Looking
from modalign.evaluation.diagnosis.mir import IntegrationRate
from modalign.evaluation.diagnosis.norms import Norms
from modalign.evaluation.diagnosis.reading import ObservedModel, Seen, media_of, text_of
from modalign.evaluation.diagnosis.results import (
    DIAGNOSTICS,
    Diagnosis,
    Diagnostic,
    ModalityDiagnosis,
    diagnostic,
)
from modalign.evaluation.diagnosis.text_similarity import similarity
from modalign.evaluation.guessing import blind_guess
from modalign.models.asking import tokenizer_of
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.numbers.sampling import Sampling
from modalign.patches import patches_of, with_patches
from modalign.progress import Progress
from modalign.version import __version__

log = logging.getLogger(__name__)

RECORDS = 200  # MIR's authors find 100 enough
FEWEST = 4  # records of a modality below which it is not diagnosed


@quietly()
def diagnose(
    folder: Path,
    data: str,
    *,
    limit: int = RECORDS,
    seed: int = 0,
    train: str | None = None,
    skip_broken: str = "0%",
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    patches: Sequence[Path] = (),
    command: str = "",
    progress: Progress | None = None,
) -> Diagnosis:
    """Diagnose a saved model on the records of a data file.

    Args:
        folder: model folder, ours or an image-text model of transformers.
        data: data file; the last assistant turn is the expected answer.
        limit: records per modality, drawn at random.
        seed: of the draw, the pairings, the noise and the intervals.
        train: training data for chance; by default the answers saved in the model folder.
        skip_broken: share of broken records to drop.
        columns: expected column -> its name in the file.
        device: device to compute on.
        patches: patch files to apply to the loaded model.
        command: command line, for the report.
        progress: called with the progress per modality.

    Raises:
        UsageError: the model has no connector, or does not show what is needed.
        DataError: broken data, or no record with media of the model's modalities.
    """
    began, guess = time.monotonic(), blind_guess(folder, train)
    loaded, processor = open_model(folder, device=device)
    model: Any = with_patches(loaded, tokenizer_of(processor), patches)
    subject = ObservedModel(model, processor)
    records, _ = validate(
        read_records(data, modalities=subject.modalities, columns=columns),
        modalities=subject.modalities,
        skip_broken=skip_broken,
    )
    held = {m: [r for r in records if media_of(r, m)] for m in subject.modalities}
    chosen = {m: _drawn(own, limit, seed) for m, own in held.items() if len(own) >= FEWEST}
    if not chosen:
        for text in unread(records):
            log.warning("%s", text)
        counted = ", ".join(f"{len(own)} with {m}" for m, own in held.items())
        raise DataError(
            f"{data}: {len(records)} records, {counted}; at least {FEWEST} of a modality are needed"
        )
    return Diagnosis(
        model=str(folder),
        data=data,
        command=command,
        version=__version__,
        seed=seed,
        available=sum(any(True for _ in record.media()) for record in records),
        records=len({id(record) for own in chosen.values() for record in own}),
        patches=[f"{each.patch.header.name} ({each.sha256})" for each in patches_of(model)],
        device=str(subject.device),
        dtype=str(model.dtype).removeprefix("torch."),
        modalities=[
            _modality(subject, m, own, seed, progress, guess.mean_chance(own))
            for m, own in chosen.items()
        ],
        seconds=time.monotonic() - began,
    )


def _drawn(records: list[Record], limit: int, seed: int) -> list[Record]:
    """Draw ``limit`` records at random, in file order."""
    order = np.random.default_rng(seed).permutation(len(records))[:limit]
    return [records[place] for place in sorted(order)]


@dataclass
class _Items:
    """Distinct media of a modality with all texts about them."""

    texts: dict[tuple[Media, ...], list[str]] = field(default_factory=dict)
    features: list[np.ndarray] = field(default_factory=list)  # (d,) each
    outputs: list[np.ndarray] = field(default_factory=list)  # (w,) each

    def add(self, record: Record, modality: str, seen: Seen) -> None:
        """Add a record; features come from the first record with these media."""
        own = media_of(record, modality)
        if own not in self.texts:
            for kept, found in ((self.features, seen.features), (self.outputs, seen.outputs)):
                if modality in found:
                    kept.append(_mean(found[modality]))
        self.texts.setdefault(own, []).append(text_of(record))


def _mean(rows: Tensor) -> np.ndarray:
    return rows.double().mean(dim=0).cpu().numpy()


def _modality(
    subject: ObservedModel,
    modality: str,
    records: list[Record],
    seed: int,
    progress: Progress | None,
    chance: float | None = None,
) -> ModalityDiagnosis:
    """All diagnostics of one modality."""
    prefix = subject.enters[modality] == "prefix"
    sampling = _sampling(modality, records, seed)
    items, looking = _Items(), Looking(subject, modality, records, sampling, chance)
    gap, norms = Gap(modality, sampling), Norms(modality, sampling)
    mir, mass = IntegrationRate(sampling), AttentionMass(sampling)
    answers = [record.answer for record in records]
    lens = LogitLens(subject, answers, sampling) if prefix else None
    for number, record in enumerate(records):
        given = subject.given(record)
        seen = subject.look(given)
        looking.add(number, record, given, seen.logits)
        items.add(record, modality, seen)
        if lens is not None:
            places, outputs = seen.places[modality], seen.outputs[modality]
            gap.add(outputs, subject.embedded(subject.text_ids(text_of(record))))
            norms.add(outputs, seen.embeds[seen.words])
            mir.add(seen.states, places, seen.words)
            lens.add(number, seen, places)
            mass.add(seen.attentions, given.start, len(given.answer), places)
        if progress:
            progress(f"reading {modality} records", number + 1, len(records))
    found = [looking.result()]
    if lens is not None:
        found += [gap.result(), norms.result(), mir.result()]
    found += _similarities(subject, modality, items, seed, progress)
    if lens is not None:
        found += [lens.result(), mass.result(subject.no_attention)]
    else:
        found += [
            diagnostic(name, undefined=f"not defined in layers: {texts['in_layer']}")
            for name, texts in DIAGNOSTICS.items()
            if "in_layer" in texts
        ]
    encoder, connector = _names(subject, modality)
    return ModalityDiagnosis(
        modality=modality,
        enters=subject.enters[modality],
        encoder=encoder,
        connector=connector,
        records=len(records),
        media=len({medium for record in records for medium in media_of(record, modality)}),
        diagnostics=found,
    )


def _sampling(modality: str, records: Sequence[Record], seed: int) -> Sampling:
    """Group records about the same media, so that they are resampled together."""
    known: dict[tuple[Media, ...], str] = {}
    labels = [known.setdefault(media_of(record, modality), str(len(known))) for record in records]
    return Sampling(labels, seed)


def _similarities(
    subject: ObservedModel, modality: str, items: _Items, seed: int, progress: Progress | None
) -> list[Diagnostic]:
    """Compare encoder features and connector outputs with the language model's layers."""
    texts = []
    for number, said in enumerate(items.texts.values()):
        states = subject.read_text(subject.text_ids(" ".join(said)))
        texts.append([_mean(state) for state in states])
        if progress:
            progress(f"reading texts of {modality}", number + 1, len(items.texts))
    found = []
    for part, rows in (("encoder", items.features), ("connector", items.outputs)):
        name = f"{part}_similarity"
        if len(rows) == len(texts):
            found.append(similarity(name, rows, texts, seed))
        else:
            why = f"the {modality} encoder inside {type(subject.model).__name__} cannot be found"
            found.append(diagnostic(name, undefined=why))
    return found


def _names(subject: ObservedModel, modality: str) -> tuple[str, str]:
    """Return the names of the encoder and the connector."""
    model = subject.model
    if isinstance(model, ModalignForConditionalGeneration):
        bridge = (model.config.bridges or {})[modality]
        spec = bridge["encoder"]
        inner = spec.get("config") or {}
        return str(inner.get("model_type") or spec["kind"]), str(bridge["connector"]["name"])
    part = "audio_config" if modality == "audio" else "vision_config"
    name = getattr(getattr(model.config, part, None), "model_type", None) or "its own encoder"
    return str(name), f"{type(model).__name__}'s connector"
