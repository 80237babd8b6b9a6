"""Check what all training media must agree on, for modalities of (length, width) arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from modalign.data.modalities import modality_of
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.errors import UsageError


def agreed(
    modality: str,
    media: Sequence[Media],
    read: Callable[[Media], np.ndarray],
    option: str,
    most: int | None,
) -> tuple[int, int]:
    """Return the maximum length of the model, and the common width of the training media.

    Args:
        modality: the media's modality.
        media: the training media.
        read: gives a medium's (length, width) array.
        option: name of the option for the maximum length.
        most: its value; None: the longest medium's length.

    Raises:
        UsageError: no media, or one is longer than ``most``.
        SignalError: for the first medium whose width is not the most frequent one.
    """
    if not media:
        raise UsageError(f"no {modality} in the training data, which configures the encoder")
    what = modality_of(modality).shared
    shapes = [read(medium).shape for medium in media]
    (width, count), *others = Counter(found for _, found in shapes).most_common()
    if others:
        odd, found = next((m, w) for m, (_, w) in zip(media, shapes, strict=True) if w != width)
        raise SignalError(
            odd,
            f"{what} {found}; {count} of {len(media)} media of the training data have {what} {width}",
        )
    longest = max(length for length, _ in shapes)
    if most is not None and most < longest:
        raise UsageError(f"{option}={most}, but a training medium has {longest} {_unit(option)}")
    return most or longest, width


def no_longer(array: np.ndarray, media: Media, most: int, option: str) -> np.ndarray:
    """Return a medium's array, if it is not longer than the model allows.

    Raises:
        SignalError: it is longer.
    """
    if len(array) > most:
        raise SignalError(
            media,
            f"{len(array)} {_unit(option)}, but the model takes at most {most}: shorten it, or train with "
            f"{option}={len(array)}",
        )
    return array


def _unit(option: str) -> str:
    """Return what an option counts: for ``max_steps``, steps."""
    return option.removeprefix("max_")
