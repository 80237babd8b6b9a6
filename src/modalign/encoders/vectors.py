"""Vectors: precomputed (N, d) arrays are the features; the encoder is the identity.

It has no parameters. With ``standardise`` it subtracts the training vectors' mean and divides by their
standard deviation, per dimension, because connectors are initialised for features of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modalign.encoders.base import EncoderError, Prepared, SignalEncoder, all_features, padded

LEAST = torch.finfo(torch.float32).smallest_normal


class Identity(SignalEncoder):
    """Return vectors unchanged, or standardised.

    Args:
        width: d.
        length: N, maximum vectors of one signal.
        standardise: keep ``mean`` and ``scale`` (d,), set by :meth:`fit`, saved with the model.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, length: int, standardise: bool = False) -> None:
        super().__init__()
        self.feature_size, self.num_features = width, length
        self.standardise = standardise
        if standardise:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))

    def fit(self, vectors: Tensor) -> None:
        """Set mean and standard deviation from (n, d) vectors; a constant dimension keeps scale 1.

        So does one whose deviation is too small to divide by in float32.
        """
        scale = vectors.double().std(dim=0, correction=0)
        self.mean.copy_(vectors.double().mean(dim=0))
        self.scale.copy_(scale.where(scale > LEAST, torch.ones_like(scale)))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, N, d) -> the same, with the mask of existing vectors."""
        features = (values - self.mean) / self.scale if self.standardise else values
        return all_features(features) if mask is None else (features, mask)


def build(spec: dict[str, Any]) -> Identity:
    """Build the encoder from its description (``kind``: identity)."""
    if spec["kind"] != "identity":
        raise EncoderError(f"unknown vectors encoder {spec['kind']!r}; known: identity")
    return Identity(spec["width"], spec["length"], spec["standardise"])


def prepare(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """(N_i, d) arrays or lists -> values (n, N, d), padded with zeros.

    Raises:
        EncoderError: another width, or more vectors than the model accepts.
    """
    width, length = spec["width"], spec["length"]
    signals = [torch.as_tensor(signal, dtype=torch.float32) for signal in signals]
    for signal in signals:
        if signal.dim() != 2 or signal.shape[1] != width or not 0 < len(signal) <= length:
            raise EncoderError(
                f"vectors of shape {tuple(signal.shape)}; the model takes (N, {width}) with N up to "
                f"{length}"
            )
    return padded(signals)
