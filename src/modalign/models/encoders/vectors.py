"""Vectors: width and maximum number come from the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt

from modalign.data.records import Media
from modalign.data.vectors import open_vectors
from modalign.encoders.vectors import Identity, build
from modalign.errors import UsageError
from modalign.models.encoders.agreement import agreed, no_longer
from modalign.models.encoders.options import Options

FITTED = 20_000  # evenly spaced media used for mean and standard deviation


class VectorOptions(Options):
    """Options of vectors.

    Attributes:
        standardise: zero mean and unit variance in every dimension, over the training vectors.
        max_vectors: maximum vectors of one signal (default: the training data's longest).
    """

    standardise: bool = False
    max_vectors: PositiveInt | None = None


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], Identity]:
    """Configure and build the identity encoder for training vectors.

    Args:
        name: None or "none": vectors are already encoded.
        media: training media.
        options: see :class:`VectorOptions`.
        allow_pickle: not used.

    Raises:
        UsageError: an unknown name or option, or no media.
        SignalError: a medium cannot be read, or its width differs from the majority.
    """
    if name not in (None, "none"):
        raise UsageError(f"vectors are already encoded: the encoder must be none, not {name!r}")
    chosen = VectorOptions.read("vectors", options)
    length, width = agreed("vectors", media, open_vectors, "max_vectors", chosen.max_vectors)
    spec = {
        "kind": "identity",
        "width": width,
        "length": length,
        "standardise": chosen.standardise,
    }
    encoder = build(spec)
    if chosen.standardise:
        step = -(-len(media) // FITTED)
        sample = np.concatenate([open_vectors(medium) for medium in media[::step]])
        encoder.fit(torch.from_numpy(sample))
    return spec, encoder.eval()


def decode(media: Media, spec: dict[str, Any]) -> np.ndarray:
    """Read the vectors of a medium for the model.

    Raises:
        SignalError: another width, or more vectors than the model accepts.
    """
    return no_longer(open_vectors(media, spec["width"]), media, spec["length"], "max_vectors")
