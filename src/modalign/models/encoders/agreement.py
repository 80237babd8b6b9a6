"""What all training media must agree on: the width of vectors, the channels of series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from modalign.data.records import Media
from modalign.data.signals import SignalError


def agreed(media: Sequence[Media], sizes: Sequence[int], what: str) -> int:
    """The size that all media have.

    Args:
        media: at least one.
        sizes: one for each.
        what: named in the error: "width".

    Raises:
        SignalError: for the first medium whose size is not the most frequent one.
    """
    (size, count), *others = Counter(sizes).most_common()
    if others:
        odd, found = next((m, s) for m, s in zip(media, sizes, strict=True) if s != size)
        raise SignalError(
            "broken-media",
            odd,
            f"{what} {found}; {count} of {len(media)} media of the training data have {what} {size}",
        )
    return size
