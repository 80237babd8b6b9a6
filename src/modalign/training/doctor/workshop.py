"""Build every method's model around one language model, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from modalign.connectors.base import InLayerConnector
from modalign.data.supervision import Sample
from modalign.models.collation import Collator, MediaSource
from modalign.models.compose import LanguageModel
from modalign.models.encoders.loading import Encoder
from modalign.training.learners import Composed
from modalign.training.methods import Method
from modalign.training.parallel import device_of
from modalign.training.references import References
from modalign.training.session import composed
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts, sources_of
from modalign.training.tool_methods import entries_of


@dataclass
class Workshop:
    """Parts, loaded once, and the models built around them one after the other."""

    parts: Parts
    llm: LanguageModel
    settings: TrainSettings
    train: Sequence[Sample]
    val: Sequence[Sample]
    cache: Path
    text: Sequence[Sample] = ()
    known: dict[bool, list[Encoder]] = field(default_factory=dict)
    known_sources: dict[bool, dict[str, MediaSource]] = field(default_factory=dict)

    def encoders(self, raw: bool) -> list[Encoder]:
        """Return the encoders, or raw patches for the image encoder."""
        if raw not in self.known:
            media = [medium for sample in self.train for medium in sample.media]
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.known[raw] = self.parts.load_encoders(media, raw)
        return self.known[raw]

    def sources(self, raw: bool) -> dict[str, MediaSource]:
        """Return where media come from, as in a session."""
        if raw not in self.known_sources:
            device, mode = device_of(self.settings), self.settings.encoder
            self.known_sources[raw] = sources_of(
                self.encoders(raw), mode, self.cache, device, None, raw
            )
        return self.known_sources[raw]

    @cached_property
    def references(self) -> References:
        """The references of all methods."""
        return References(self.llm.tokenizer, device_of(self.settings))

    @contextmanager
    def subject(self, method: Method, lora: bool = True) -> Iterator[Composed]:
        """Build a method's model; hooks and LoRA are removed afterwards. Draws no random number.

        Args:
            method: what to compose.
            lora: add LoRA if the settings request it; otherwise the language model is frozen.
        """
        raw, settings = method.facts.raw_input, self.settings
        if settings.llm == "lora" and not lora:
            settings = settings.model_copy(update={"llm": "frozen"})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, processor, adapters = composed(
                method,
                self.llm,
                [] if method.tools else self.encoders(raw),
                settings,
                device_of(settings),
                self.parts.connector,
            )
        try:
            sources = {} if method.tools else self.sources(raw)
            collator = Collator.of(model, processor.tokenizer, sources, settings.packed)
            if method.tools:
                _, collator.entries = entries_of(
                    method.tools, self.parts, processor.tokenizer, self.cache
                )
            given = (self.train, self.val, method, self.references, self.text)
            yield Composed(model, processor, collator, settings, *given)
        finally:
            if adapters is not None:
                adapters.unload()
                if hasattr(self.llm.model, "peft_config"):
                    del self.llm.model.peft_config
            for connector in model.connectors.values():
                if isinstance(connector, InLayerConnector):
                    connector.detach()
