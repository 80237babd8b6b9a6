"""What every modality must offer the rest of the house: a look at a medium, and a blank one of its size."""

from __future__ import annotations

import importlib
from typing import Any

from modalign.data.images import MAX_PIXELS, check_image
from modalign.data.records import Media


def _module(modality: str) -> Any:
    """The module that reads a modality; imported when it is needed, with the libraries it needs."""
    plural = {"image": "images", "table": "tables"}
    return importlib.import_module(f"modalign.data.{plural.get(modality, modality)}")


def check_medium(media: Media, *, max_pixels: int = MAX_PIXELS) -> int | None:
    """Open a medium to see that it can be used.

    Returns:
        the size that all media of its modality must share, where there is one: the width of vectors, the
        channels of a series.

    Raises:
        ImageError, SignalError: it cannot; ``kind`` and ``reason`` say why.
    """
    if media.modality == "image":
        check_image(media, max_pixels=max_pixels)
        return None
    size: int | None = getattr(_module(media.modality), f"check_{media.modality}")(media)
    return size


def blank_like(media: Media) -> Media:
    """A medium of the same size with nothing to perceive: grey, silence, the mean, no value."""
    if media.modality == "image":
        blank: Media = _module("image").blank_like(media)
    else:
        blank = getattr(_module(media.modality), f"blank_{media.modality}")(media)
    return blank
