"""The student: a folder, or made from the teacher by keeping some layers or by a new connector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modalign.compression.layers import LayerRule, block_influence, chosen_layers, keep_layers
from modalign.connectors.base import InLayerConnector
from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.models.asking import tokenizer_of
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.parts import decoder_layers
from modalign.models.saved import OpenedModel, open_composed

CALIBRATION = 64  # records that a layer's influence is measured on
BATCH = 8


@dataclass(frozen=True)
class StudentPlan:
    """How the student comes about.

    Attributes:
        teacher: folder.
        folder: of the student; None: the teacher itself, cut or with a new connector.
        layers: decoder layers to keep, by number; empty: all.
        connector: of a new connector from the encoder; None: the folder's own.
    """

    teacher: str
    folder: str | None
    layers: tuple[int, ...] = ()
    connector: str | None = None

    def make(self, seed: int) -> OpenedModel:
        """Open or make the student; the seed decides a new connector.

        Raises:
            UsageError: there is no encoder for the connector, or a folder cannot be opened.
        """
        whose = "the student" if self.folder else "the teacher"
        opened = open_composed(self.folder or self.teacher, whose)
        inside = any(isinstance(c, InLayerConnector) for c in opened.model.connectors.values())
        if inside and (self.layers or self.connector):
            raise UsageError(
                f"{opened.name}: its connector acts inside the decoder layers, which can be neither cut nor given "
                "another connector below it; name its plain language model with --student"
            )
        if self.layers:
            keep_layers(opened.model.language_model, self.layers)
            opened.model.config.text_config = opened.model.language_model.config
        if self.connector:
            opened = self._connected(opened, self.connector, seed)
        return opened

    def _connected(self, opened: OpenedModel, connector: str, seed: int) -> OpenedModel:
        """Return the model's language part with its encoders, or the teacher's, joined by a new connector."""
        encoders = opened.encoders or open_composed(self.teacher, "the teacher").encoders
        if not encoders:
            raise UsageError(
                f"--student-connector {connector}: neither the student nor the teacher has an encoder"
            )
        tokenizer = tokenizer_of(opened.reader)
        prepare_tokenizer(tokenizer, [each.modality for each in encoders])
        llm = LanguageModel(opened.name, opened.model.language_model, tokenizer, opened.stored)
        torch.manual_seed(seed)
        model, processor = compose(llm, encoders, connector)
        return OpenedModel(opened.name, model.eval(), processor, encoders, opened.stored)


def plan_layers(
    opened: OpenedModel, count: int, rule: LayerRule, samples: Sequence[Sample]
) -> list[int]:
    """Return which layers of a model the student keeps.

    Args:
        opened: the model to cut.
        count: how many.
        rule: how they are chosen.
        samples: records that their influence is measured on, the first ones of them.

    Raises:
        UsageError: the model has fewer layers.
    """
    collator = opened.collator()

    def influence() -> list[float]:
        chosen = list(samples[:CALIBRATION])
        parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
        batches = (collator(part) for part in parts)
        return block_influence(
            opened.model.language_model,
            lambda batch: opened.model(**batch.model_inputs(), use_cache=False),
            ((batch, batch.segments >= 0) for batch in batches),
        )

    return chosen_layers(count, len(decoder_layers(opened.model.language_model)), rule, influence)
