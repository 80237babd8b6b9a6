"""What all training media must agree on, and the longest of them: for modalities of (length, width) arrays."""

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
    """The greatest length that a model takes, and the width that all training media have.

    Args:
        modality: name of the media's.
        media: the training media.
        read: gives a medium's (length, width) array.
        option: name of the option that sets the greatest length.
        most: its value; None: the longest medium's length.

    Raises:
        UsageError: no media, or one is longer than ``most``.
        SignalError: for the first medium whose width is not the most frequent one.
    """
    if not media:
        raise UsageError(f"no {modality} in the training data, from which the encoder is described")
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
    """A medium's array, if it is no longer than the model takes.

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
    """What an option counts: steps, of ``max_steps``."""
    return option.removeprefix("max_")
