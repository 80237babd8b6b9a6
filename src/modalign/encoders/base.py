"""The contract of an encoder: it turns a batch of one modality's signals into features.

This file and its siblings import only torch, transformers and each other: a trained model is exported with
copies of them. Decoding files is done in ``modalign.data``; loading pretrained weights and configuring an
encoder from data in ``modalign.models.encoders``.

Besides its encoder classes, every modality's file offers

* ``build(spec) -> SignalEncoder``: build an encoder from its JSON-able description (key ``kind`` selects it);
* ``prepare(spec, signals) -> Prepared``: turn decoded signals (numpy arrays, in the modality's own form) into
  one batch of tensors; needs no weights, so that a processor can do it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int]


class EncoderError(ValueError):
    """An encoder that cannot be built or does not return features."""


@dataclass
class Prepared:
    """Signals of one modality as tensors.

    Attributes:
        values: (n, ...) the encoder's input.
        mask: (n, T) bool, True where there is signal, or None if all of it is.
        counts: features of each of the n signals (N without a mask).
    """

    values: Tensor
    mask: Tensor | None
    counts: list[int]


class SignalEncoder(nn.Module, ABC):
    """Signals of one modality -> features.

    Attributes:
        feature_size: d, width of a feature.
        num_features: N, features of one signal (the maximum, if it varies).
        grid: (h, w) with h * w == N if the features form a grid, else None.
        frames: T, equal groups (frames of a video) of the N features.
        frame_grid: (h, w) with T * h * w == N if the features of each group form a grid.
        each_frame: the connector must process every group separately, even if it needs no grid.
        fresh: its weights are untrained, so it trains with the connector, at the connector's rate,
            even if pretrained encoders are frozen.
    """

    feature_size: int
    num_features: int
    grid: Grid | None = None
    frames: int = 1
    frame_grid: Grid | None = None
    each_frame: bool = False
    fresh: bool = False

    @abstractmethod
    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
            values: from the modality's :func:`prepare`, (n, ...).
            mask: (n, T) bool over the signal's own steps, or None if all are signal. Values
                where it is False must not matter.

        Returns:
            features (n, N, d) and their mask (n, N) bool: a signal's features come first, then
            padding; ``Prepared.counts`` are True.
        """


def all_features(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (n, N, d) with a mask that is True everywhere."""
    return features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)


def padded(signals: Sequence[Tensor], counts: list[int] | None = None) -> Prepared:
    """Pad signals (T_i, ...) with zeros to one batch (n, T, ...).

    Args:
        signals: at least one.
        counts: features of each; None: as many as it has steps.
    """
    values = nn.utils.rnn.pad_sequence(list(signals), batch_first=True)
    lengths = [len(signal) for signal in signals]
    mask = prefix_mask(torch.tensor(lengths), values.shape[1])
    return Prepared(values, mask, lengths if counts is None else counts)


def prefix_mask(counts: Tensor, length: int) -> Tensor:
    """Return (n, length) bool, True at the first ``counts`` (n,) positions of each row."""
    return torch.arange(length, device=counts.device)[None] < counts[:, None]


def imported(path: str, arguments: dict[str, Any]) -> nn.Module:
    """Create a user's module.

    Raises:
        EncoderError: it cannot be imported or created, or is not a torch module.
    """
    name, _, attribute = path.partition(":")
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EncoderError(
            f"encoder {path!r} cannot be imported ({error}); give package.module:Class"
        ) from error
    # Looked at before it is called: a folder's description may name any callable there is.
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        raise EncoderError(f"encoder {path!r} is not a torch.nn.Module")
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise EncoderError(f"encoder {path!r} cannot be created: {error}") from error
    return module.eval()
