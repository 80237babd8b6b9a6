"""What a stage optimises: the whole model, or a connector's own pre-training without the LLM.

A learner turns sample numbers into batches and batches into outputs; the trainer knows no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.models.collation import Batch, CachedFeatures, Collator
from modalign.models.modeling import Features, ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.training.costs import CostModel
from modalign.training.settings import Stage, TrainSettings


class Learner(Protocol):
    """A module and how to feed it."""

    splits: bool  # whether a batch may be cut into parts, over micro-batches and processes

    @property
    def module(self) -> nn.Module:
        """What trains."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What it trains on, by number."""

    def collate(self, indices: Sequence[int]) -> Any:
        """Build a batch."""

    def idle(self) -> Any:
        """A batch without weight, for a process that has no sample left in the last batch."""

    def outputs(self, call: Callable[..., Any], batch: Any) -> Any:
        """Run ``call`` (the module, possibly wrapped) on a batch."""

    def flops(self, batch: Any) -> float:
        """Training FLOPs of the batch."""


class ModelLearner:
    """The composed model, trained through its language model."""

    splits = True

    def __init__(
        self,
        model: ModalignForConditionalGeneration,
        samples: Sequence[Sample],
        collator: Collator,
        settings: TrainSettings,
        stage: Stage,
    ) -> None:
        self.module, self.samples, self.collator = model, samples, collator
        self.costs = CostModel.of(model)
        self.llm = stage.llm or settings.llm
        self.encoder = stage.encoder or settings.encoder

    def collate(self, indices: Sequence[int]) -> Batch:
        """Build a batch of token ids and features."""
        return self.collator([self.samples[index] for index in indices])

    def idle(self) -> Batch:
        """The first sample with nothing supervised."""
        batch = self.collate([0])
        return replace(
            batch,
            keep=torch.zeros_like(batch.keep),
            targets=batch.targets[:0],
            owner=batch.owner[:0],
            num_supervised=0.0,
        )

    def outputs(self, call: Callable[..., Any], batch: Batch) -> Any:
        """Logits at the supervised positions."""
        return call(**batch.model_inputs(), use_cache=False)

    def flops(self, batch: Batch) -> float:
        """By the cost model, padding included."""
        rows, length = batch.input_ids.shape
        media = sum(len(sample.media) for sample in batch.samples)
        return self.costs.training(rows, length, len(batch.targets), media, self.llm, self.encoder)


@dataclass
class PairBatch:
    """Image-text pairs: features and padded texts (see the Q-Former's stage 1)."""

    features: Features
    text_ids: Tensor  # (B, T)
    text_mask: Tensor  # (B, T) bool
    item_ids: Tensor  # (B,) equal where the texts are equal
    samples: list[Sample]
    num_supervised: float = 1.0

    def to(self, device: torch.device) -> PairBatch:
        """Move every tensor."""
        values = Features(
            self.features.values.to(device), self.features.mask.to(device), self.features.grid
        )
        return PairBatch(
            values,
            self.text_ids.to(device),
            self.text_mask.to(device),
            self.item_ids.to(device),
            self.samples,
            self.num_supervised,
        )


def captions(samples: Sequence[Sample]) -> list[Sample]:
    """One sample per image, the one whose answer is longest; those of several images are left out."""
    best: dict[Any, Sample] = {}
    for sample in samples:
        if len(sample.media) == 1:
            known = best.get(sample.media[0])
            if known is None or sample.supervised.sum() > known.supervised.sum():
                best[sample.media[0]] = sample
    return list(best.values())


class StageOneLearner:
    """A connector's own pre-training on image-text pairs, without the language model.

    The text is the answer; equal texts share their contrastive target. The language model's
    tokenizer supplies the words, and the text branch learns its own embeddings of them. A pair is
    contrasted with all others of its batch, so a batch is never cut: every process runs all of it.
    """

    splits = False

    def __init__(
        self,
        model: ModalignForConditionalGeneration,
        samples: Sequence[Sample],
        source: CachedFeatures,
        pad_id: int,
    ) -> None:
        connector = model.connector(source.modality)
        if not connector.has_stage_one:
            raise UsageError(f"connector {connector.name!r} has no stage one of its own")
        self.samples = captions(samples)
        self.texts = [sample.ids[sample.supervised] for sample in self.samples]
        if len({text.tobytes() for text in self.texts}) < 2:
            raise UsageError("stage one needs images with at least two different texts to train on")
        self.source, self.pad_id = source, pad_id
        longest = max(map(len, self.texts))
        vocabulary = embedding(model).num_embeddings
        self.module: nn.Module = connector.build_stage_one(vocabulary, longest + 1)  # type: ignore[operator]
        self.parameters = sum(p.numel() for p in self.module.parameters() if p.dim() > 1)
        self.connector = connector

    def collate(self, indices: Sequence[int]) -> PairBatch:
        """Pairs, texts right-padded; pairs of one text borrow another to be told from."""
        indices = [*indices, *self._other_text(indices)]
        chosen = [self.samples[index] for index in indices]
        texts = [self.texts[index] for index in indices]
        ids = torch.full((len(texts), max(map(len, texts))), self.pad_id, dtype=torch.long)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.from_numpy(text)
            mask[row, : len(text)] = True
        numbers: dict[bytes, int] = {}
        items = [numbers.setdefault(text.tobytes(), len(numbers)) for text in texts]
        fetched = self.source.fetch([sample.media[0] for sample in chosen])
        features: Features = fetched["features"][self.source.modality]
        return PairBatch(features, ids, mask, torch.tensor(items), chosen, float(mask.sum()))

    def _other_text(self, indices: Sequence[int]) -> list[int]:
        first = self.texts[indices[0]].tobytes()
        if any(self.texts[index].tobytes() != first for index in indices):
            return []
        count, start = len(self.texts), indices[0]
        around = ((start + step) % count for step in range(count))
        return [next(index for index in around if self.texts[index].tobytes() != first)]

    def idle(self) -> PairBatch:
        """Never asked for: no process is without its samples."""
        raise NotImplementedError

    def outputs(self, call: Callable[..., Any], batch: PairBatch) -> Any:
        """What the three stage-one terms read."""
        features = batch.features
        return call(
            features.values,
            features.mask,
            features.grid,
            batch.text_ids,
            batch.text_mask,
            batch.item_ids,
        )

    def flops(self, batch: PairBatch) -> float:
        """Query passes for three losses and the text passes, forward and backward."""
        B, T = batch.text_ids.shape
        N = batch.features.values.shape[1]
        return 3 * B * (5 * self.connector.flops(N) + 3 * 2.0 * self.parameters * T)
