"""Samples become a batch: placeholders expanded and checked, rows padded or packed, features fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modalign.data.batching import pack
from modalign.data.features import FeatureStore
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.data.supervision import IGNORE, Sample
from modalign.errors import DataError
from modalign.models.compose import IMAGE_TOKEN
from modalign.models.modeling import Features


@dataclass
class Batch:
    """What the model reads for one (micro-)batch.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T) bool, or (B, 1, T, T) additive for packed rows.
        position_ids: (B, T), restarting at 0 for every sample.
        keep: (B, T) bool, positions whose next token is supervised.
        targets: (K,) those next tokens, row by row.
        owner: (K,) which of the batch's samples each target belongs to.
        features: encoder features of all media, in reading order.
        pixel_values: (n, 3, H, W) instead, where the encoder trains.
        num_supervised: supervised tokens of the whole batch over micro-batches and devices.
        num_media: media, likewise.
        num_tokens: positions that hold a token.
        samples: the samples, in the order they were given in (``owner`` counts them so).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    keep: Tensor
    targets: Tensor
    owner: Tensor
    samples: list[Sample]
    features: dict[str, Features] = field(default_factory=dict)
    pixel_values: Tensor | None = None
    num_supervised: float = 1.0
    num_media: float = 0.0
    num_tokens: int = 0

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        moved = {
            key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        features = {
            key: Features(value.values.to(device), value.mask.to(device), value.grid)
            for key, value in self.features.items()
        }
        return Batch(**{**vars(self), **moved, "features": features})

    @property
    def padding(self) -> float:
        """Share of positions that hold no token."""
        if self.attention_mask.dim() == 2:
            return 1 - float(self.attention_mask.float().mean())
        return 1 - self.num_tokens / self.input_ids.numel()

    def model_inputs(self) -> dict[str, object]:
        """Arguments of the model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "features": self.features or None,
            "pixel_values": self.pixel_values,
            "logits_to_keep": self.keep,
        }


class MediaSource(Protocol):
    """Where a batch's media come from."""

    def fetch(self, media: Sequence[Media]) -> dict[str, object]:
        """Return ``features`` or ``pixel_values`` for the batch."""


class CachedFeatures:
    """Features from the store: the encoder is frozen and does not run."""

    def __init__(self, store: FeatureStore, modality: str = "image") -> None:
        self.store, self.modality = store, modality

    def fetch(self, media: Sequence[Media]) -> dict[str, object]:
        """Features of the media, in order."""
        if not media:
            return {}
        values, mask, grid = self.store.gather(media)
        return {"features": {self.modality: Features(values, mask, grid)}}


class Pixels:
    """Decoded images through the image processor: the encoder runs with the model."""

    def __init__(self, processor: Callable[..., Any]) -> None:
        self.processor = processor

    def fetch(self, media: Sequence[Media]) -> dict[str, object]:
        """Pixels (n, 3, H, W) of the media, in order."""
        if not media:
            return {}
        images = [open_image(medium) for medium in media]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}


@dataclass
class Collator:
    """Builds batches for one method.

    Attributes:
        source: of the media.
        token_id: the placeholder.
        tokens_per_medium: how many positions one medium takes.
        pad_id: fills padding (never attended to, never supervised).
        pack_length: positions of a packed row, or None to pad.
        max_length: longest sequence the language model reads, or None.
    """

    source: MediaSource
    token_id: int
    tokens_per_medium: int
    pad_id: int
    pack_length: int | None = None
    max_length: int | None = None

    @classmethod
    def of(
        cls, model: Any, processor: Any, source: MediaSource, pack_length: int | None
    ) -> Collator:
        """The collator that a composed model and its processor ask for."""
        tokenizer = processor.tokenizer
        return cls(
            source=source,
            token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            tokens_per_medium=processor.num_image_tokens,
            pad_id=tokenizer.pad_token_id or 0,
            pack_length=pack_length,
            max_length=getattr(model.config.text_config, "max_position_embeddings", None),
        )

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
            samples=list(samples),
            num_supervised=float(keep.sum()),
            num_media=float(len(media)),
            num_tokens=sum(lengths),
            **self.source.fetch(media),  # type: ignore[arg-type]
        )

    def _expand(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        ids, labels = sample.expanded(self.token_id, self.tokens_per_medium)
        wanted = len(sample.media) * self.tokens_per_medium
        if int((ids == self.token_id).sum()) != wanted:
            raise DataError(
                f"{sample.record.source}: placeholders do not match its {len(sample.media)} media"
            )
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
