"""Vectors: a medium is N precomputed vectors of width d, from any encoder."""

from __future__ import annotations

import json

import numpy as np

from modalign.data.arrays import are_numbers, read_array
from modalign.data.modalities import Inline, Modality
from modalign.data.records import Media
from modalign.data.signals import SignalError


def open_vectors(media: Media, width: int | None = None) -> np.ndarray:
    """Read the vectors of a medium.

    Args:
        media: a file or part of a file (see :mod:`modalign.data.arrays`), or inline lists. One
            vector (d,) means (1, d).
        width: required d.

    Returns:
        (N, d) float32, all finite.

    Raises:
        SignalError: unreadable, with another width, more than two dimensions, or a value that is
            missing, NaN or infinite.
    """
    array = np.atleast_2d(read_array(media))
    if array.ndim > 2:
        shape = " x ".join(map(str, array.shape))
        raise SignalError(
            media, f"has shape {shape}, not (N, d): select one of its rows (#0, #1, ...)"
        )
    if width is not None and array.shape[1] != width:
        raise SignalError(
            media, f"vectors of width {array.shape[1]}, but the model's are {width} wide"
        )
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        row, place = wrong[0]
        raise SignalError(
            media,
            f"value {place} of vector {row} is {array[row, place]}: every value must be a finite "
            "number; remove the row or fill in the value",
        )
    return array


def check_vectors(media: Media) -> int:
    """Read a medium once to check that `open_vectors` will work; return the width d.

    Raises:
        SignalError: as `open_vectors` does.
    """
    return open_vectors(media).shape[1]


def blank_vectors(media: Media) -> Media:
    """Make equally many zero vectors of the same width."""
    count, width = open_vectors(media).shape
    return Media("vectors", data=json.dumps([[0] * width] * count).encode())


VECTORS = Modality(
    name="vectors",
    words="vectors",
    check=check_vectors,
    blank=blank_vectors,
    encoder="modalign.encoders.vectors",
    loader="modalign.models.encoders.vectors",
    shared="width",
    endings=(".npy",),
    inline=Inline(
        words="a list of numbers (or of such lists)",
        is_one=are_numbers,
        schema=list[float] | list[list[float]],
    ),
    chat_part='{"type": "vectors", "vectors": array}',
    chat_note="array: (N, d)",
)
