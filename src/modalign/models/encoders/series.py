"""Series: channels, maximum length and usual levels come from the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import PositiveInt

from modalign.data.records import Media
from modalign.data.series import open_series
from modalign.encoders.base import SignalEncoder
from modalign.encoders.series import build
from modalign.errors import UsageError
from modalign.models.encoders.agreement import agreed, no_longer
from modalign.models.encoders.options import Options

KINDS = {None: "patches", "none": "patches", "conv": "conv"}


class SeriesOptions(Options):
    """Options of series encoders.

    Attributes:
        patch: P, steps of one feature.
        max_steps: maximum steps of a series (default: the training data's longest).
        width: d of the ``conv`` encoder.
    """

    patch: PositiveInt = 8
    max_steps: PositiveInt | None = None
    width: PositiveInt = 64


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], SignalEncoder]:
    """Configure and build a series encoder for training series.

    Args:
        name: None or "none": patches; "conv": a small trained convolutional encoder.
        media: training media.
        options: see :class:`SeriesOptions`.
        allow_pickle: not used.

    Raises:
        UsageError: an unknown name or option, or no media.
        SignalError: a series cannot be read, or its number of channels differs from the majority.
    """
    if name not in KINDS:
        raise UsageError(f"no series encoder {name!r}: choose none or conv")
    chosen = SeriesOptions.read("series", options)
    steps, channels = agreed("series", media, open_series, "max_steps", chosen.max_steps)
    mean, scale = _usual(media, channels)
    spec = {
        "kind": KINDS[name],
        "patch": chosen.patch,
        "channels": channels,
        "steps": steps,
        "mean": mean.tolist(),
        "scale": scale.tolist(),
    }
    if spec["kind"] == "conv":
        spec["width"] = chosen.width
    return spec, build(spec).eval()


def decode(media: Media, spec: dict[str, Any]) -> np.ndarray:
    """Read a series for the model.

    Raises:
        SignalError: another number of channels, or more steps than the model accepts.
    """
    return no_longer(open_series(media, spec["channels"]), media, spec["steps"], "max_steps")


def _usual(media: Sequence[Media], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation (C,) of all observed values, one series at a time.

    A constant or entirely missing channel has deviation 1.
    """
    count, mean, squares = (np.zeros(channels) for _ in range(3))
    for medium in media:  # Chan et al.'s parallel update: sums of squares would cancel
        array = open_series(medium).astype(np.float64)
        observed = ~np.isnan(array)
        added = observed.sum(axis=0)
        own = np.where(observed, array, 0).sum(axis=0) / np.maximum(added, 1)
        apart = np.where(observed, array - own, 0)
        total = np.maximum(count + added, 1)
        squares += (apart**2).sum(axis=0) + (own - mean) ** 2 * count * added / total
        mean += (own - mean) * added / total
        count += added
    deviation = np.sqrt(squares / np.maximum(count, 1))
    return mean, np.where(deviation > 1e-9 * np.abs(mean), deviation, 1.0)
