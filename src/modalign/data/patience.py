"""How long decoding one medium may take, whatever its header says: a file of a megabyte can hold hours of work.

Decoders work in blocks and frames, so that the limit holds between them; what one call of a decoder may take is
limited by sizes (pixels, scans, samples). A server decodes in processes of their own, with limits of their own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.errors import UsageError

VARIABLE = "MODALIGN_DECODE_SECONDS"
SECONDS = 60.0
WAITING = 4  # seconds by the clock to each: decoders of videos work in threads of their own, or wait for others

Item = TypeVar("Item")


def allowed_seconds() -> float:
    """Return how many seconds of computing one medium may take.

    Raises:
        UsageError: the environment says something else than a number above 0.
    """
    said = os.environ.get(VARIABLE)
    if said is None:
        return SECONDS
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise UsageError(f"{VARIABLE} is {said!r}: give seconds above 0, like 300")
    return seconds


def more_than(seconds: float) -> str:
    """Say how more is had, for messages."""
    return f"allow more (modalign --decode-seconds {2 * seconds:g} VERB ..., or {VARIABLE})"


def within(media: Media, items: Iterable[Item]) -> Iterator[Item]:
    """Give what is decoded of a medium, piece by piece, for as long as it may take.

    The thread's own computing counts, so that a busy machine refuses nothing in a hurry, and four times as much by
    the clock.

    Raises:
        SignalError: it takes longer.
    """
    seconds = allowed_seconds()
    computed, began = time.thread_time() + seconds, time.monotonic() + WAITING * seconds
    for item in items:
        if time.thread_time() > computed or time.monotonic() > began:
            raise SignalError(
                media,
                f"not decoded within {seconds:g} s: cut it into shorter pieces, or {more_than(seconds)}",
                "too-much-work",
            )
        yield item
