"""How well a model answers, and how much its answers depend on the media: per record, for paired estimates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from modalign.data.records import Record
from modalign.data.supervision import Sample, tokenise_all
from modalign.evaluation.diagnosis.looking import divergence, is_right
from modalign.evaluation.diagnosis.reading import ObservedModel
from modalign.evaluation.passes import blanked
from modalign.evaluation.scoring import score
from modalign.models.processing import ModalignProcessor
from modalign.models.saved import OpenedModel

LOOKED_AT = 100  # records on which the dependence on media is measured
NOTHING = 1e-4  # nats: a teacher whose answers move less when its media are blanked does not look


class Judged(BaseModel):
    """A model on the evaluation records.

    Attributes:
        loss: summed over the answer's tokens.
        tokens: of the answer.
        correct: whether the greedy answer equals the reference.
        moved: KL in nats, mean over the answer's tokens, of the answer's distribution with the media from that
            with blank ones; of the records looked at, empty without media.
        gained: right with the media minus right with blank ones, of the same records.
    """

    model_config = ConfigDict(extra="forbid")

    loss: list[float]
    tokens: list[int]
    correct: list[bool]
    moved: list[float] = []
    gained: list[int] = []

    @property
    def nll(self) -> np.ndarray:
        """(n,) contributions whose mean is the loss per answer token."""
        return np.array(self.loss) * len(self.loss) / max(sum(self.tokens), 1)


def judge(opened: OpenedModel, samples: Sequence[Sample], device: torch.device) -> Judged:
    """Judge a model on samples: their last answers, and some of them with blank media.

    Args:
        opened: the model; left in evaluation mode on the device.
        samples: tokenised for any model of the same vocabulary.
        device: where to compute.
    """
    model = opened.model.to(device).eval()
    found = score(model, tokenised_for(opened, samples), opened.collator(), device)
    looked = [sample.record for sample in samples if sample.media][:LOOKED_AT]
    moved, gained = looking(opened, looked)
    return Judged(
        loss=found.loss.tolist(),
        tokens=found.tokens.tolist(),
        correct=found.correct.tolist(),
        moved=moved,
        gained=gained,
    )


def tokenised_for(opened: OpenedModel, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples with a model's own ids of placeholders."""
    if not any(sample.media for sample in samples):
        return samples
    return tokenise_all([sample.record for sample in samples], opened.tokenizer)


def looking(opened: OpenedModel, records: Sequence[Record]) -> tuple[list[float], list[int]]:
    """Return, per record, how far blank media move the answer's distribution, and how right it was with them."""
    if not records or not isinstance(opened.reader, ModalignProcessor):
        return [], []
    subject = ObservedModel(opened.model, opened.reader)
    moved, gained = [], []
    for record, blank in zip(records, blanked(records), strict=True):
        given, other = subject.given(record), subject.given(blank)
        right, without = subject.answer_logits(given), subject.answer_logits(other)
        moved.append(divergence(right, without))
        gained.append(int(is_right(right, given.answer)) - int(is_right(without, given.answer)))
    return moved, gained
