"""What a stage optimises: the whole model, or a connector's own pre-training without the LLM.

A learner turns sample numbers into batches and batches into outputs; the trainer knows nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from modalign.connectors.base import PrefixConnector
from modalign.data.batching import BatchOrder
from modalign.data.stored import StoredSamples
from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.models.collation import CachedFeatures, Collator
from modalign.models.modeling import Features, ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.training.costs import CostModel
from modalign.training.methods import Method
from modalign.training.modality_dropout import dropped
from modalign.training.objectives import Objective
from modalign.training.outputs import MAPS, Outputs, TrainBatch, prefix_places, read, row_kind
from modalign.training.recipes import select
from modalign.training.references import References
from modalign.training.roles import RoleOrder, Roles
from modalign.training.settings import Stage, TrainSettings

STARTING_MEDIA = 256  # media whose features initialise stage one


@dataclass(eq=False)
class Composed:
    """A method's model with its data and how it trains: a session, or one built by the doctor."""

    model: Any
    processor: Any
    collator: Collator
    settings: TrainSettings
    train_samples: Sequence[Sample]
    val_samples: Sequence[Sample]
    method: Method
    references: References
    text_samples: Sequence[Sample] = ()
    seed: int = 0


class ModelLearner:
    """The composed model, trained through its language model on a stage's records.

    Raises:
        UsageError: there are no such records, or the stage's terms cannot be computed.
    """

    splits = True  # a batch may be cut into parts, into micro-batches and processes

    def __init__(self, subject: Composed, stage: Stage) -> None:
        self.module, self.collator = subject.model, subject.collator
        given, text = subject.train_samples, subject.text_samples
        self.roles = Roles.choose(stage, given, text) if stage.roles else None
        self.samples: Sequence[Sample] = (
            self.roles.samples if self.roles else select(given, stage, subject.seed, text)
        )
        objective = Objective.of(stage)
        self.needs = objective.needs
        self.media_rows = any(row_kind(need) == "media" for need in self.needs)
        self.costs = CostModel.of(self.module)
        self.llm = stage.llm or subject.settings.llm
        self.encoder = stage.encoder or subject.settings.encoder
        self.modality_dropout = subject.settings.modality_dropout
        connectors = self.module.connectors.values()
        parts = [*connectors, *self.module.encoders.values()]
        own = {id(parameter) for part in parts for parameter in part.parameters()}
        trained = {id(p) for p in self.module.parameters() if p.requires_grad}
        # In-layer connectors stand in the path of text, too; terms on weights need no batch at all.
        prefixes = all(isinstance(connector, PrefixConnector) for connector in connectors)
        learning = "weights" in self.needs or any(each.learns for each in objective.terms)
        self.media_alone = prefixes and trained <= own and not learning
        if self.media_rows and not any(isinstance(c, PrefixConnector) for c in connectors):
            raise UsageError(
                f"{subject.method.name}: stage {stage.name!r} reads media positions, but this "
                "method puts none into the sequence (its media are read in the layers, or as words); "
                "use a prefix connector, or a term about answers"
            )

    def order(self, batch_size: int, seed: int) -> BatchOrder | RoleOrder:
        """Return batches of similar lengths; with roles, each role in every batch."""
        if self.roles is not None:
            return self.roles.order(batch_size, seed)
        return BatchOrder.of(self.samples, batch_size, seed)

    def collate(self, indices: Sequence[int]) -> TrainBatch:
        """Build a batch of token ids and features; in training some modalities may be dropped."""
        chosen = [self.samples[index] for index in indices]
        if self.modality_dropout:
            tokens = {name: entry.token_id for name, entry in self.collator.entries.items()}
            chosen = [dropped(sample, self.modality_dropout, tokens) for sample in chosen]
        plain = self.collator(chosen)
        places = torch.zeros_like(plain.keep)
        if self.media_rows:
            places = prefix_places(self.module, self.collator, plain.input_ids)
        keys = torch.zeros(len(chosen), dtype=torch.long)
        roles = keys - 1
        if self.roles:
            roles, keys = self.roles.labels(indices)
        batch = TrainBatch(
            **vars(plain),
            places=places,
            numbers=torch.arange(len(chosen)),
            roles=roles,
            keys=keys,
            role_names=self.roles.names if self.roles else (),
        )
        return batch.whole(batch.count(), 1.0)

    def idles(self, indices: Sequence[int]) -> bool:
        """Whether no gradient can come from these: text alone, and only what media pass through trains."""
        if not self.media_alone:
            return False
        if isinstance(self.samples, StoredSamples):  # known without decoding any
            return not self.samples.media[list(indices)].any()
        return not any(self.samples[index].media for index in indices)

    def idle(self) -> TrainBatch:
        """Return the first sample with zero counts."""
        batch = self.collate([0])
        nowhere = torch.zeros_like(batch.keep)
        batch = replace(
            batch,
            keep=nowhere,
            places=nowhere,
            targets=batch.targets[:0],
            owner=batch.owner[:0],
            segments=torch.full_like(batch.segments, -1),
            numbers=torch.tensor([-1]),
        )
        return batch.whole(batch.count(), 1.0)

    def outputs(self, call: Callable[..., Any], batch: TrainBatch) -> Outputs:
        """Return what the stage's terms need from the model."""
        found = read(self.module, call, batch, self.needs)
        found.codes = self._codes(batch)
        found.maps = getattr(self.module, MAPS, {})
        if "weights" in self.needs:
            own = self.module.named_parameters()
            found.weights = {name: weight for name, weight in own if weight.requires_grad}
        return found

    def _codes(self, batch: TrainBatch) -> list[Any]:
        """Return what connectors left for objective terms; nothing for an idle batch or artificial medium."""
        own = {medium.modality for sample in batch.samples for medium in sample.media}
        left = {name: part.take_code() for name, part in self.module.connectors.items()}
        counted = own if bool((batch.numbers >= 0).any()) else set()
        return [code for name, code in left.items() if name in counted and code is not None]

    def flops(self, batch: TrainBatch) -> float:
        """Return the FLOPs by the cost model, including padding."""
        rows, length = batch.input_ids.shape
        media = sum(len(sample.media) for sample in batch.samples)
        shown = int(batch.shown(self.needs).sum())
        return self.costs.training(rows, length, shown, media, self.llm, self.encoder)


def captions(samples: Sequence[Sample]) -> list[Sample]:
    """Return one sample per medium, that with the longest answer; skip those with several media."""
    best: dict[Any, Sample] = {}
    for sample in samples:
        if len(sample.media) == 1:
            known = best.get(sample.media[0])
            if known is None or sample.supervised.sum() > known.supervised.sum():
                best[sample.media[0]] = sample
    return list(best.values())


@dataclass
class MediaBatch:
    """Media for stage one: their features, and the texts of a connector that needs them."""

    features: Features
    samples: list[Sample]
    num_supervised: float
    num_media: float
    texts: dict[str, Tensor] = field(default_factory=dict)

    def count(self) -> dict[str, float]:
        """Return the batch's counts."""
        return {"num_supervised": self.num_supervised, "num_media": self.num_media}

    def whole(self, counts: dict[str, float], share: float) -> Self:
        """Return the batch itself: stage one is never split."""
        return self

    def to(self, device: torch.device) -> Self:
        """Move every tensor."""
        features = replace(
            self.features,
            values=self.features.values.to(device),
            mask=self.features.mask.to(device),
        )
        texts = {name: value.to(device) for name, value in self.texts.items()}
        return replace(self, features=features, texts=texts)


class StageOneLearner:
    """A connector's own pre-training on media alone, without the language model.

    A batch is never split (texts are contrasted with all others in the batch): every process runs
    all of it.
    """

    splits = False

    def idles(self, indices: Sequence[int]) -> bool:
        """Never: every sample has its medium."""
        return False

    def __init__(
        self,
        model: ModalignForConditionalGeneration,
        samples: Sequence[Sample],
        source: CachedFeatures,
    ) -> None:
        self.connector: Any = model.connector(source.modality)
        self.samples, self.source = captions(samples), source
        if not self.samples:
            raise UsageError("stage one needs records with one medium each, but there are none")
        self.module: nn.Module = self._build(model)

    def _build(self, model: ModalignForConditionalGeneration) -> nn.Module:
        """Build the network of stage one, initialised from media spread over the data."""
        step = max(len(self.samples) // STARTING_MEDIA, 1)
        features = self._features(self.samples[::step][:STARTING_MEDIA])
        device = next(self.connector.parameters()).device
        values, mask = features.values.to(device), features.mask.to(device)
        return self.connector.build_stage_one(values, mask, features.grid)

    def _features(self, samples: Sequence[Sample]) -> Features:
        fetched = self.source.fetch([sample.media[0] for sample in samples])
        return fetched["features"][self.source.modality]

    def order(self, batch_size: int, seed: int) -> BatchOrder:
        """Return batches of similar lengths."""
        return BatchOrder.of(self.samples, batch_size, seed)

    def collate(self, indices: Sequence[int]) -> MediaBatch:
        """Return the features of the samples' media."""
        chosen = [self.samples[index] for index in indices]
        return MediaBatch(self._features(chosen), chosen, len(chosen), len(chosen))

    def outputs(self, call: Callable[..., Any], batch: MediaBatch) -> Any:
        """Return what the connector's stage-one terms read."""
        features = batch.features
        return call(features.values, features.mask, features.grid, **batch.texts)

    def flops(self, batch: MediaBatch) -> float:
        """Return forward and backward FLOPs."""
        B, N = batch.features.mask.shape
        return 3.0 * B * self.module.flops(N)  # type: ignore[operator]


class PairLearner(StageOneLearner):
    """Stage one of a connector that needs a text with every medium.

    The text is the answer; equal texts share their contrastive target. The language model's
    tokenizer supplies the words; the text branch learns its own embeddings.
    """

    def __init__(
        self,
        model: ModalignForConditionalGeneration,
        samples: Sequence[Sample],
        source: CachedFeatures,
        pad_id: int,
    ) -> None:
        self.pad_id = pad_id
        super().__init__(model, samples, source)
        self.parameters = sum(p.numel() for p in self.module.parameters() if p.dim() > 1)

    def _build(self, model: ModalignForConditionalGeneration) -> nn.Module:
        self.texts = [sample.ids[sample.supervised] for sample in self.samples]
        if len({text.tobytes() for text in self.texts}) < 2:
            raise UsageError("stage one needs images with at least two different texts to train on")
        longest = max(map(len, self.texts))
        return self.connector.build_stage_one(embedding(model).num_embeddings, longest + 1)

    def collate(self, indices: Sequence[int]) -> MediaBatch:
        """Return pairs with right-padded texts; if all share one text, another is added for contrast."""
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
        named = {"text_ids": ids, "text_mask": mask, "item_ids": torch.tensor(items)}
        return MediaBatch(
            self._features(chosen), chosen, float(mask.sum()), len(chosen), texts=named
        )

    def _other_text(self, indices: Sequence[int]) -> list[int]:
        first = self.texts[indices[0]].tobytes()
        if any(self.texts[index].tobytes() != first for index in indices):
            return []
        count, start = len(self.texts), indices[0]
        around = ((start + step) % count for step in range(count))
        return [next(index for index in around if self.texts[index].tobytes() != first)]

    def flops(self, batch: MediaBatch) -> float:
        """Return FLOPs of the query passes for three losses and the text passes, forward and backward."""
        B, T = batch.texts["text_ids"].shape
        N = batch.features.values.shape[1]
        return 3 * B * (5 * self.connector.flops(N) + 3 * 2.0 * self.parameters * T)


def stage_one_learner(
    model: ModalignForConditionalGeneration,
    samples: Sequence[Sample],
    source: CachedFeatures,
    pad_id: int,
) -> StageOneLearner:
    """Return the learner of the connector's own pre-training, with or without texts.

    Raises:
        UsageError: the connector has none, or the data is unsuitable.
    """
    connector = model.connector(source.modality)
    if not connector.stage_one_terms():
        raise UsageError(f"connector {connector.name!r} has no stage one")
    if connector.stage_one_needs_text:
        return PairLearner(model, samples, source, pad_id)
    return StageOneLearner(model, samples, source)


Learner = ModelLearner | StageOneLearner
