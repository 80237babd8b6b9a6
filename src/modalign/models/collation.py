"""Collate samples: expand and check placeholders, pad or pack rows, fetch features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from modalign.chat_templates import separator_id
from modalign.data.batching import pack
from modalign.data.features import FeatureStore
from modalign.data.records import Media, mark
from modalign.data.supervision import IGNORE, Sample
from modalign.errors import DataError
from modalign.lengths import declared_length
from modalign.models.bridges import Features, signal_names
from modalign.models.compose import token_table
from modalign.models.encoders.loading import Encoder
from modalign.models.modeling import ModalignForConditionalGeneration


@dataclass
class Batch:
    """The model's inputs for one (micro-)batch.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T) bool, or (B, 1, T, T) additive for packed rows.
        position_ids: (B, T), restarting at 0 for every sample.
        keep: (B, T) bool, positions whose next token is supervised.
        targets: (K,) those next tokens, row by row.
        owner: (K,) index of each target's sample in the batch.
        segments: (B, T) index of each position's sample; -1 for padding.
        features: encoder features of all media, in reading order.
        signals: raw signals instead, if an encoder trains, by the name of the model's argument.
        num_supervised: supervised tokens of the whole batch, over micro-batches and devices.
        num_media: media, likewise.
        num_tokens: positions that hold a token.
        separator_id: of the separator of two notes, if the tokenizer has one.
        samples: the samples, in the given order (as indexed by ``owner``).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    keep: Tensor
    targets: Tensor
    owner: Tensor
    segments: Tensor
    samples: list[Sample]
    features: dict[str, Features] = field(default_factory=dict)
    signals: dict[str, Tensor] = field(default_factory=dict)
    num_supervised: float = 1.0
    num_media: float = 0.0
    num_tokens: int = 0
    separator_id: int | None = None

    def to(self, device: torch.device) -> Self:
        """Move every tensor."""
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        features = {
            key: Features(value.values.to(device), value.mask.to(device), value.grid)
            for key, value in self.features.items()
        }
        signals = {key: value.to(device) for key, value in self.signals.items()}
        return replace(self, **moved, features=features, signals=signals)

    @property
    def padding(self) -> float:
        """Return the share of padding positions."""
        if self.attention_mask.dim() == 2:
            return 1 - float(self.attention_mask.float().mean())
        return 1 - self.num_tokens / self.input_ids.numel()

    def model_inputs(self) -> dict[str, object]:
        """Return the arguments of the model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "features": self.features or None,
            "logits_to_keep": self.keep,
            **self.signals,
        }


class MediaSource(Protocol):
    """The source of one modality's media."""

    def counts(self, media: Sequence[Media]) -> list[int]:
        """Return the number of features of each medium."""

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return the forward arguments with the media, in order."""


class CachedFeatures:
    """Features from the store: the encoder is frozen and does not run."""

    def __init__(self, store: FeatureStore, modality: str = "image") -> None:
        self.store, self.modality = store, modality

    def counts(self, media: Sequence[Media]) -> list[int]:
        """Return the number of features of each medium."""
        return [self.store.count(medium) for medium in media]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return the features of the media, in order."""
        values, mask, grid = self.store.gather(media)
        return {"features": {self.modality: Features(values, mask, grid)}}


class RawSignals:
    """Decoded and prepared signals: the encoder runs with the model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._counts: dict[Media, int] = {}

    def counts(self, media: Sequence[Media]) -> list[int]:
        """Return the number of features of each medium, decoding it once."""
        if self.encoder.module.grid is not None:  # equally many for every medium
            return [self.encoder.module.num_features] * len(media)
        unknown = [m for m in dict.fromkeys(media) if m not in self._counts]
        if unknown:
            found = self.encoder.prepare(unknown).counts
            self._counts.update(zip(unknown, found, strict=True))
        return [self._counts[medium] for medium in media]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return the signals of the media, in order: for example (n, 3, H, W) pixels."""
        prepared = self.encoder.prepare(media)
        values, mask = signal_names(self.encoder.modality)
        return {values: prepared.values} | ({} if prepared.mask is None else {mask: prepared.mask})


class Entry(Protocol):
    """How one modality enters the sequence."""

    token_id: int  # of its placeholder

    @property
    def tokens(self) -> int:
        """Return the maximum positions of a medium."""

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """Return the ids (t,) that replace each medium's placeholder."""

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Return the forward arguments with the media, in order."""


@dataclass
class Placeholders:
    """A modality whose media enter by a connector, with one placeholder per token.

    Attributes:
        source: source of the media.
        token_id: the placeholder.
        table: positions of a medium with 0, 1, ... features (``compose.token_table``).
    """

    source: MediaSource
    token_id: int
    table: list[int]

    @property
    def tokens(self) -> int:
        """Return the maximum positions of a medium."""
        return self.table[-1]

    def stand_ins(self, media: Sequence[Media]) -> list[np.ndarray]:
        """Return the repeated placeholder."""
        counts = self.source.counts(media)
        return [np.full(self.table[n], self.token_id, dtype=np.int64) for n in counts]

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        """Fetch from the source."""
        return self.source.fetch(media)


@dataclass
class Collator:
    """Builds batches for one method.

    Attributes:
        entries: modality -> how it enters.
        pad_id: id of padding (never attended to, never supervised).
        pack_length: positions of a packed row, or None to pad.
        max_length: longest sequence the language model reads, or None.
        separator_id: of the separator of two notes, or None.
    """

    entries: dict[str, Entry]
    pad_id: int
    pack_length: int | None = None
    max_length: int | None = None
    separator_id: int | None = None

    @classmethod
    def of(
        cls,
        model: ModalignForConditionalGeneration,
        tokenizer: Any,
        sources: Mapping[str, MediaSource],
        pack_length: int | None,
    ) -> Collator:
        """Build the collator for a composed model and its tokenizer."""
        entries: dict[str, Entry] = {
            modality: Placeholders(
                source,
                tokenizer.convert_tokens_to_ids(mark(modality)),
                token_table(model.connector(modality), model.encoders[modality]),  # type: ignore[arg-type]
            )
            for modality, source in sources.items()
        }
        return cls(
            entries=entries,
            pad_id=tokenizer.pad_token_id or 0,
            pack_length=pack_length,
            max_length=declared_length(model.config),
            separator_id=separator_id(tokenizer),
        )

    @property
    def tokens_per_medium(self) -> int:
        """Return the maximum positions of one medium of every modality together."""
        return sum(entry.tokens for entry in self.entries.values())

    def length(self, sample: Sample) -> int:
        """Return the positions of a sample with its media."""
        return len(sample.ids) + sum(len(ids) - 1 for ids in self._stand_ins(sample))

    def _stand_ins(self, sample: Sample) -> list[np.ndarray]:
        found: dict[str, Iterator[np.ndarray]] = {}
        for modality in {medium.modality for medium in sample.media}:
            own = [medium for medium in sample.media if medium.modality == modality]
            found[modality] = iter(self._entry(modality, sample).stand_ins(own))
        return [next(found[medium.modality]) for medium in sample.media]

    def _entry(self, modality: str, sample: Sample) -> Entry:
        if modality not in self.entries:
            raise DataError(
                f"{sample.record.source}: holds {modality}, but the model takes "
                f"{', '.join(self.entries) or 'text only'}"
            )
        return self.entries[modality]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Collate.

        Raises:
            DataError: a sample is longer than the language model reads, or its placeholders and
                media differ in number.
        """
        expanded = [self._expand(sample) for sample in samples]
        lengths = [len(ids) for ids, _ in expanded]
        if self.pack_length is None:
            rows = [[index] for index in range(len(samples))]
        else:
            rows = pack(lengths, self.pack_length)
        width = max(sum(lengths[index] for index in row) for row in rows)
        shape = (len(rows), width)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int64)
        for r, row in enumerate(rows):
            start = 0
            for index in row:
                stop = start + lengths[index]
                ids[r, start:stop], labels[r, start:stop] = expanded[index]
                labels[r, start] = IGNORE  # nothing before a sample's first token predicts it
                positions[r, start:stop] = np.arange(lengths[index])
                segments[r, start:stop] = index
                start = stop
            positions[r, start:] = np.arange(width - start) + (start if len(row) == 1 else 0)
        following = np.full(shape, IGNORE, dtype=np.int64)
        following[:, :-1] = labels[:, 1:]
        keep = following != IGNORE
        order = [index for row in rows for index in row]
        media = [medium for index in order for medium in samples[index].media]
        return Batch(
            input_ids=torch.from_numpy(ids),
            attention_mask=self._mask(segments),
            position_ids=torch.from_numpy(positions),
            keep=torch.from_numpy(keep),
            targets=torch.from_numpy(following[keep]),
            owner=torch.from_numpy(segments[keep]),
            segments=torch.from_numpy(segments),
            samples=list(samples),
            num_supervised=float(keep.sum()),
            num_media=float(len(media)),
            num_tokens=sum(lengths),
            separator_id=self.separator_id,
            **self._fetched(media),
        )

    def _fetched(self, media: Sequence[Media]) -> dict[str, Any]:
        features: dict[str, Features] = {}
        signals: dict[str, Tensor] = {}
        for modality, entry in self.entries.items():
            own = [medium for medium in media if medium.modality == modality]
            if own:
                inputs = entry.fetch(own)
                features |= inputs.pop("features", {})
                signals |= inputs
        return {"features": features, "signals": signals}

    def _expand(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        placeholders = [entry.token_id for entry in self.entries.values()]
        ids, labels = sample.expanded(placeholders, self._stand_ins(sample))
        if self.max_length is not None and len(ids) > self.max_length:
            raise DataError(
                f"{sample.record.source}: {len(ids)} tokens, but the language model reads at most "
                f"{self.max_length}; shorten the text or use a connector with fewer tokens than "
                f"{self.tokens_per_medium} per medium"
            )
        return ids, labels

    def _mask(self, segments: np.ndarray) -> Tensor:
        if self.pack_length is None:
            return torch.from_numpy(segments >= 0).long()
        same = segments[:, :, None] == segments[:, None, :]
        causal = np.tril(np.ones(same.shape[1:], dtype=bool))
        allowed = torch.from_numpy(same & causal)[:, None]
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
