"""The contract of an encoder: a batch of one modality's signals becomes features.

This file and every file beside it imports only torch, transformers and its siblings: a trained model is
exported with copies of them. Decoding files is the data room's (``modalign.data``); loading pretrained
weights and describing an encoder from data is ``modalign.models.encoders``'.

Every modality's file offers, besides its encoder classes,

* ``build(spec) -> SignalEncoder``: an encoder from its JSON-able description (key ``kind`` says which);
* ``prepare(spec, signals) -> Prepared``: decoded signals (numpy arrays, the modality's own form) become
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
    """An encoder that cannot be built or gives something that is not features."""


@dataclass
class Prepared:
    """Signals of one modality as tensors.

    Attributes:
        values: (n, ...) what the encoder reads.
        mask: (n, T) bool, True where there is signal, or None where all of it is.
        counts: features that each of the n signals gives (N where nothing is masked).
    """

    values: Tensor
    mask: Tensor | None
    counts: list[int]


class SignalEncoder(nn.Module, ABC):
    """Signals of one modality -> features.

    Attributes:
        feature_size: d, width of a feature.
        num_features: N, features of one signal (the most, where it varies).
        grid: (h, w) with h * w == N where the features lie on one, else None.
        frames: T, equal runs (frames of a video) that N features fall into.
        frame_grid: (h, w) with T * h * w == N where the features of each run lie on a grid.
        each_frame: the connector must work on every run by itself, even one that needs no grid.
        fresh: its weights were never trained, so it trains with the connector, at the connector's rate,
            even where pretrained encoders are frozen.
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
            values: as :func:`prepare` of the modality gives them, (n, ...).
            mask: (n, T) bool over the signal's own steps, or None where all are signal. What stands
                where it is False must not matter.

        Returns:
            features (n, N, d) and their mask (n, N) bool: the features of a signal come first, padding
            after them; as many are True as ``Prepared.counts`` says.
        """


def all_features(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, N, d) with a mask that is True everywhere."""
    return features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)


def padded(signals: Sequence[Tensor], counts: list[int] | None = None) -> Prepared:
    """Signals (T_i, ...) as one batch (n, T, ...), zeros after the shorter ones.

    Args:
        signals: at least one.
        counts: features that each gives; None: as many as it has steps.
    """
    values = nn.utils.rnn.pad_sequence(list(signals), batch_first=True)
    lengths = [len(signal) for signal in signals]
    mask = prefix_mask(torch.tensor(lengths), values.shape[1])
    return Prepared(values, mask, lengths if counts is None else counts)


def prefix_mask(counts: Tensor, length: int) -> Tensor:
    """(n, length) bool, True at the first ``counts`` (n,) places of each row."""
    return torch.arange(length, device=counts.device)[None] < counts[:, None]


def imported(path: str, arguments: dict[str, Any]) -> nn.Module:
    """Make a user's module.

    Raises:
        EncoderError: it cannot be imported or made, or is no torch module.
    """
    name, _, attribute = path.partition(":")
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EncoderError(
            f"encoder {path!r} cannot be imported ({error}); give package.module:Class"
        ) from error
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise EncoderError(f"encoder {path!r} cannot be made: {error}") from error
    if not isinstance(module, nn.Module):
        raise EncoderError(f"encoder {path!r} is no torch.nn.Module")
    return module.eval()
