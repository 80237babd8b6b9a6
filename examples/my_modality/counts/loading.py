"""The encoder of counts: described from the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import PositiveInt

from counts.encoder import build
from counts.media import open_counts
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.encoders.base import SignalEncoder
from modalign.errors import UsageError
from modalign.models.encoders.options import Options


class CountsOptions(Options):
    """What can be set: ``most``, counts of a medium (default: of the longest in the training data)."""

    most: PositiveInt | None = None


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], SignalEncoder]:
    """Describe and build the encoder.

    Raises:
        UsageError: another name than none, an unknown option, no media.
        SignalError: a medium cannot be read.
    """
    if name not in (None, "none"):
        raise UsageError(f"counts have no encoder {name!r}: choose none")
    if not media:
        raise UsageError("no counts in the training data")
    chosen = CountsOptions.read("counts", options)
    spec = {"kind": "log", "most": chosen.most or max(len(open_counts(each)) for each in media)}
    return spec, build(spec).eval()


def decode(media: Media, spec: dict[str, Any]) -> np.ndarray:
    """A medium as the encoder's ``prepare`` takes it.

    Raises:
        SignalError: it cannot be read, or is longer than the model takes.
    """
    counts = open_counts(media)
    if len(counts) > spec["most"]:
        raise SignalError(
            media, f"{len(counts)} counts, but the model takes at most {spec['most']}"
        )
    return counts
