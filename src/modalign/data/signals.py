"""What every modality's reader shares: one error that says which medium, what was wrong, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modalign.data.readers.result import Kind
from modalign.data.records import Media
from modalign.errors import DataError


class SignalError(DataError):
    """A medium that cannot be used.

    Attributes:
        kind: why, in the words of ``Problem.kind``.
        reason: the message without the medium's name.
        media: the medium.
    """

    def __init__(self, kind: Kind, media: Media, message: str) -> None:
        super().__init__(f"{media.label}: {message}")
        self.kind = kind
        self.reason = message
        self.media = media


def file_and_part(media: Media) -> tuple[Path, str | None]:
    """The file of a medium and the part of it that is meant; see :meth:`Media.located`."""
    return media.located()


def inline_value(media: Media) -> Any:
    """The value that a row held itself (a list of numbers, a mapping), from the medium's JSON bytes.

    Raises:
        SignalError: the bytes are no JSON.
    """
    assert media.data is not None
    try:
        return json.loads(media.data)
    except ValueError as error:
        raise SignalError(
            "broken-media", media, f"the value in the row is no JSON ({error})"
        ) from None
