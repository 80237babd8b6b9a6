"""Every method's model around one language model, one after the other, each taken apart again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modalign.connectors.base import InLayerConnector
from modalign.data.records import Media
from modalign.data.supervision import Sample
from modalign.models.collation import CachedFeatures, Collator, MediaSource, Pixels
from modalign.models.compose import Encoder, LanguageModel
from modalign.training.methods import Method
from modalign.training.session import composed
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts, feature_store, fill_store
from modalign.training.trainer import device_of


class OnDemand(CachedFeatures):
    """Features from the store; what it lacks is encoded when it is asked for."""

    def __init__(self, encoder: Encoder, cache: Path, device: torch.device) -> None:
        super().__init__(feature_store(encoder, cache))
        self.encoder, self.device = encoder, device

    def fetch(self, media: Sequence[Media]) -> dict[str, object]:
        """Features of the media, in order."""
        fill_store(self.store, self.encoder, media, self.device)
        return super().fetch(media)


@dataclass
class Subject:
    """A method's model around parts that others use too; the same names as a session's."""

    model: Any
    collator: Collator
    settings: TrainSettings
    train_samples: Sequence[Sample]
    val_samples: Sequence[Sample]
    method: Method
    seed: int = 0


@dataclass
class Workshop:
    """Parts, loaded once, and the models that are built around them one after the other."""

    parts: Parts
    llm: LanguageModel
    settings: TrainSettings
    train: Sequence[Sample]
    val: Sequence[Sample]
    cache: Path
    encoders: dict[bool, Encoder] = field(default_factory=dict)
    sources: dict[bool, MediaSource] = field(default_factory=dict)

    def encoder(self, raw: bool) -> Encoder:
        """The encoder, or raw patches."""
        if raw not in self.encoders:
            self.encoders[raw] = self.parts.load_encoder(raw)
        return self.encoders[raw]

    def source(self, raw: bool) -> MediaSource:
        """Where media come from, as in a session."""
        if raw not in self.sources:
            encoder, device = self.encoder(raw), device_of(self.settings)
            pixels = self.settings.encoder == "full" and not raw
            self.sources[raw] = (
                Pixels(encoder.processor) if pixels else OnDemand(encoder, self.cache, device)
            )
        return self.sources[raw]

    @contextmanager
    def subject(self, method: Method, lora: bool = True) -> Iterator[Subject]:
        """A method's model; hooks and LoRA are taken out afterwards. No random number is drawn.

        Args:
            method: what to compose.
            lora: put LoRA in where the settings ask for it; otherwise the language model is frozen.
        """
        raw, settings = method.cls.raw_input, self.settings
        if settings.llm == "lora" and not lora:
            settings = settings.model_copy(update={"llm": "frozen"})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor, adapters = composed(
                method, self.llm, self.encoder(raw), settings, device_of(settings)
            )
        try:
            collator = Collator.of(model, processor, self.source(raw), settings.packed)
            yield Subject(model, collator, settings, self.train, self.val, method)
        finally:
            if adapters is not None:
                adapters.unload()
                if hasattr(self.llm.model, "peft_config"):
                    del self.llm.model.peft_config
            connector = model.connector("image")
            if isinstance(connector, InLayerConnector):
                connector.detach()
