"""Counts: a medium is a list of whole numbers from 0 on, in the row or in a file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from modalign.data.arrays import are_numbers, read_array
from modalign.data.modalities import Inline, Modality
from modalign.data.records import Media
from modalign.data.signals import SignalError


def open_counts(media: Media) -> np.ndarray:
    """Read a medium: (T,) float32, each a whole number from 0 on.

    Raises:
        SignalError: unreadable, no plain list, or a value that counts nothing.
    """
    counts = read_array(media)
    if counts.ndim != 1:
        raise SignalError(media, f"has shape {counts.shape}: give one list of counts")
    wrong = np.flatnonzero(~((counts >= 0) & (counts % 1 == 0)))
    if len(wrong):
        raise SignalError(media, f"count {wrong[0]} is {counts[wrong[0]]}: give 0, 1, 2, ...")
    return counts


def check(media: Media) -> None:
    """Open a medium to see that it can be used."""
    open_counts(media)


def blank(media: Media) -> Media:
    """As many counts, all 0."""
    return Media("counts", data=json.dumps([0] * len(open_counts(media))).encode())


def is_list(value: Any) -> bool:
    """Whether a value in a row is one medium: numbers, no lists of them."""
    return are_numbers(value) and not any(isinstance(item, list) for item in value)


COUNTS = Modality(
    name="counts",
    words="counts",
    check=check,
    blank=blank,
    encoder="counts.encoder",
    loader="counts.loading",
    inline=Inline(words="a list of whole numbers", is_one=is_list, schema=list[int]),
    title="A language model that counts",
    chat_part='{"type": "counts", "counts": [3, 0, 5]}',
    chat_note="counts: whole numbers from 0 on",
)
