"""What is joined and what it is trained on: the part of a configuration that every verb shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from modalign.data.features import FeatureStore, Grid, encoder_key
from modalign.data.images import open_image
from modalign.data.readers import read_records
from modalign.data.records import Media, Record
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import Validated, validate
from modalign.errors import DataError, UsageError
from modalign.models.compose import Encoder, LanguageModel, load_image_encoder, load_language_model
from modalign.progress import Progress


class Parts(BaseModel):
    """The language model and the encoder.

    Attributes:
        llm: hub name or folder of a causal language model.
        encoder: modality -> hub name, folder, ``package.module:Class`` or ``none`` (raw patches).
        feature_layer: hidden layer of the tower that is read (LLaVA reads -2).
        image_size, patch_size: for raw patches and imported modules.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.
    """

    model_config = ConfigDict(extra="forbid")

    llm: str
    encoder: dict[str, str]
    feature_layer: int = -2
    image_size: int = 224
    patch_size: int = 16
    allow_pickle: bool = False

    def load_llm(self) -> LanguageModel:
        """Load the language model and its tokenizer."""
        return load_language_model(self.llm, allow_pickle=self.allow_pickle)

    def load_encoder(self, raw: bool = False) -> Encoder:
        """Load the image encoder, or raw patches for methods that read those."""
        unknown = sorted(set(self.encoder) - {"image"})
        if unknown:
            raise UsageError(f"no encoder for {', '.join(unknown)}: this version aligns images")
        name = None if raw else self.encoder.get("image")
        return load_image_encoder(
            name,
            layer=self.feature_layer,
            image_size=self.image_size,
            patch_size=self.patch_size,
            allow_pickle=self.allow_pickle,
        )


class DataFiles(BaseModel):
    """Data files, in any form that the readers know.

    Attributes:
        train, val, eval: records to train on, to choose by, to judge by.
        text: further records without media; read by recipes that mix text in, and by nothing else.
        media_root: the folder that relative media paths start from.
        skip_broken: share of broken records that may be dropped.
    """

    model_config = ConfigDict(extra="forbid")

    train: str
    val: str | None = None
    eval: str | None = None
    text: str | None = None
    media_root: str | None = None
    skip_broken: str = "0%"


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


def checked_records(
    files: DataFiles,
    name: str,
    path: str,
    skip_broken: float | str,
    progress: Progress | None = None,
) -> Validated:
    """Read one of the files and open everything that it names.

    Raises:
        DataError: more broken records than may be skipped.
    """
    tell = (lambda done, total: progress(f"checking {name}", done, total)) if progress else None
    found = read_records(path, media_root=files.media_root)
    return validate(found, skip_broken=skip_broken, progress=tell)


def load_splits(files: DataFiles, tokenizer: Any, progress: Progress | None = None) -> Splits:
    """Read, validate, split and tokenise.

    Raises:
        DataError: broken data above the quota, every problem with file and row.
    """
    dropped = 0
    notes: list[str] = []

    def load(path: str | None, name: str) -> list[Record]:
        nonlocal dropped
        if path is None:
            return []
        records, report = checked_records(files, name, path, files.skip_broken, progress)
        dropped += report.dropped
        if report.dropped:
            notes.append(
                f"{report.dropped} broken records of {name} ({path}) were dropped under the quota."
            )
        return records

    train, val = load(files.train, "train"), load(files.val, "val")
    evaluation = load(files.eval, "eval")
    source = "given"
    if files.val is None:
        train, val = split_validation(train)
        source = "a fixed tenth of the training data, grouped by source image"
    leaks = leakage(train, evaluation) if evaluation else []
    if leaks:
        notes.append(
            f"{len(leaks)} images are in the training and in the evaluation data, "
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


def _without_media(records: list[Record]) -> list[Record]:
    for record in records:
        if any(True for _ in record.media()):
            raise DataError(
                f"{record.source}: data.text is for records without media; put this one into "
                "data.train"
            )
    return records


def feature_store(encoder: Encoder, cache: Path) -> FeatureStore:
    """The store of this encoder's features."""
    return FeatureStore(
        cache / "features", encoder_key(encoder.module, encoder.spec, encoder.processor)
    )


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    media: Sequence[Media],
    device: torch.device,
    progress: Progress | None = None,
) -> int:
    """Encode what the store lacks; return how many media were encoded."""
    module = encoder.module.to(device).eval()

    @torch.inference_mode()
    def encode(media: Sequence[Media]) -> list[tuple[np.ndarray, Grid | None]]:
        images = [open_image(medium) for medium in media]
        pixels = encoder.processor(images=images, return_tensors="pt")["pixel_values"]
        features = module(pixels.to(device)).float().cpu().numpy()
        return [(array, module.grid) for array in features]

    tell = (lambda done, total: progress("encoding images", done, total)) if progress else None
    return store.ensure(media, encode, progress=tell)
