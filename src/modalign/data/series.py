"""Series: a medium is T steps of C channels, possibly with gaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modalign.data.arrays import are_numbers, read_array
from modalign.data.cells import cell, csv_columns
from modalign.data.modalities import Inline, Modality
from modalign.data.records import Media
from modalign.data.signals import SignalError


def open_series(media: Media, channels: int | None = None) -> np.ndarray:
    """Read a series.

    ``x.csv`` and ``x.tsv`` hold a row per step and a column per channel, with or without a header;
    ``x.csv#a,b`` selects the columns a and b. For other files and inline lists see
    :mod:`modalign.data.arrays`; T numbers are one channel, lists of C numbers are C.

    Args:
        media: a file, part of a file or inline value.
        channels: required C.

    Returns:
        (T, C) float32, NaN where a value is missing.

    Raises:
        SignalError: unreadable, with another number of channels, an infinite value, or no value.
    """
    if media.path is not None and media.located()[0].suffix.lower() in {".csv", ".tsv"}:
        array = _csv(media, *media.located())
    else:
        array = read_array(media)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        shape = " x ".join(map(str, array.shape))
        raise SignalError(
            media,
            f"has shape {shape or 'of one number'}, not (T, C): select one of its rows (#0, #1, ...)",
        )
    if channels is not None and array.shape[1] != channels:
        raise SignalError(media, f"{array.shape[1]} channels, but the model takes {channels}")
    if np.isinf(array).any():
        step, channel = np.argwhere(np.isinf(array))[0]
        raise SignalError(
            media,
            f"step {step} of channel {channel} is infinite: give a number, or null where it is missing",
        )
    if np.isnan(array).all():
        raise SignalError(media, "every value is missing: remove the row")
    return array


def check_series(media: Media) -> int:
    """Read a series once to check that `open_series` will work; return C, its channels.

    Raises:
        SignalError: as `open_series` does.
    """
    return open_series(media).shape[1]


def blank_series(media: Media) -> Media:
    """Make a series of the same size that is zero everywhere."""
    steps, channels = open_series(media).shape
    return Media("series", data=json.dumps([[0] * channels] * steps).encode())


def _csv(media: Media, file: Path, part: str | None) -> np.ndarray:
    header, rows = csv_columns(media, file)
    places = list(range(len(header or rows[0])))
    if part is not None:
        places = [_place(media, name, header) for name in part.split(",")]
    array = np.full((len(rows), len(places)), np.nan)
    if not array.size:
        raise SignalError(media, "holds no steps")
    for step, row in enumerate(rows):
        for channel, place in enumerate(places):
            value = cell(row[place])
            if isinstance(value, str):
                column = header[place] if header else place
                raise SignalError(
                    media,
                    f"step {step} of column {column} is {value!r}, not a number: correct it, or select "
                    "columns after '#'",
                )
            if value is not None:
                array[step, channel] = value
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _place(media: Media, name: str, header: list[str] | None) -> int:
    names = [text.strip() for text in header or []]
    if name not in names:
        known = ", ".join(names) or "none: it has no header"
        raise SignalError(media, f"has no column {name!r}; its columns: {known}")
    return names.index(name)


SERIES = Modality(
    name="series",
    words="a series",
    check=check_series,
    blank=blank_series,
    encoder="modalign.encoders.series",
    loader="modalign.models.encoders.series",
    shared="number of channels",
    endings=(".npy",),
    inline=Inline(
        words="a list of numbers (or of a list per step)",
        is_one=are_numbers,
        schema=list[float | None] | list[list[float | None]],
    ),
    chat_part='{"type": "series", "series": values}',
    chat_note="values: (T, C), NaN where missing",
)
