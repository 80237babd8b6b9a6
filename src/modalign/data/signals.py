"""Code shared by all modalities' readers: one error with the medium, the problem and the remedy."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from modalign.data.readers.result import Kind
from modalign.data.records import Media
from modalign.errors import DataError
from modalign.strict_json import loads

MAX_STREAMS = 64  # of a file; FFmpeg probes each when it opens one
MAX_RATIO = 100  # of a picture's sides: with a shorter side of 800 pixels it has 64 million pixels


class SignalError(DataError):
    """A medium that cannot be used.

    Attributes:
        kind: the ``Problem.kind``.
        reason: the message without the medium's name.
        media: the medium.
    """

    def __init__(self, media: Media, message: str, kind: Kind = "broken-media") -> None:
        super().__init__(f"{media.label}: {message}")
        self.kind = kind
        self.reason = message
        self.media = media


def opened(media: Media) -> BinaryIO:
    """Open the encoded bytes of a medium as a stream.

    Raises:
        SignalError: its file does not exist or cannot be read.
    """
    if media.data is not None:
        return io.BytesIO(media.data)
    assert media.path is not None
    try:
        return open(media.path, "rb")
    except FileNotFoundError:
        raise missing(media) from None
    except (OSError, ValueError) as error:
        raise SignalError(media, f"the file cannot be read ({error})", "missing-media") from None


def refuse_thin(media: Media, width: int, height: int) -> None:
    """Refuse a picture that would take gigabytes when a processor resizes its shorter side.

    Raises:
        SignalError: one side is more than ``MAX_RATIO`` times the other.
    """
    long, short = max(width, height), min(width, height)
    if long > MAX_RATIO * short:
        raise SignalError(
            media,
            f"{width} x {height} pixels: one side is more than {MAX_RATIO} times the other, and processors that "
            "resize the shorter side would need gigabytes for it: cut it into pieces",
            "image-too-large",
        )


def missing(media: Media) -> SignalError:
    """Create the error for a missing file."""
    return SignalError(
        media, "the file does not exist: put it there or correct the path", "missing-media"
    )


def too_much_memory(media: Media) -> SignalError:
    """What is raised where decoding needs more memory than there is, or than is allowed."""
    return SignalError(media, "decoding it takes more memory than there is: shrink it, or cut it")


def beginning(stream: BinaryIO) -> str | None:
    """Return the text at the start of a file of unknown format, for messages; None if it is empty."""
    stream.seek(0)
    head = stream.read(40)
    if not head:
        return None
    text = head.decode("utf-8", errors="ignore").strip().partition("\n")[0]
    return f"; it starts with the text {text!r}" if text and text.isprintable() else ""


def inline_value(media: Media) -> Any:
    """Decode an inline value (a list of numbers, a mapping) from the medium's JSON bytes.

    Raises:
        SignalError: the bytes are not JSON.
    """
    assert media.data is not None
    try:
        return loads(media.data, nan=True)
    except ValueError as error:
        raise SignalError(media, f"the value in the row is not JSON ({error})") from None
