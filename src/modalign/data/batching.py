"""Choose which samples form a batch: in a seeded order, equal for every method, grouped by length.

The order depends only on the samples' text, never on a connector's token count, so every method
sees the same samples in the same batches. Within a window of batches, samples of similar length are
grouped: padding stays under a tenth of the tokens on ordinary data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modalign.data.stored import StoredSamples
from modalign.data.supervision import Sample

WINDOW = 64  # batches per window that is sorted by length


class BatchOrder:
    """The endless, seeded sequence of batches over ``len(lengths)`` samples.

    Args:
        lengths: text length of every sample.
        batch_size: samples per batch.
        seed: of the order.
        media: number of media of every sample; each may cost many positions, so samples with different
            numbers are mixed only if unavoidable.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, media: Sequence[int] | None = None
    ) -> None:
        self.lengths, self.batch_size, self.seed = tuple(lengths), batch_size, seed
        self.media = tuple(media) if media is not None else (0,) * len(self.lengths)
        self._current: tuple[int, list[list[int]]] | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], batch_size: int, seed: int) -> BatchOrder:
        """The order of tokenised samples."""
        if isinstance(samples, StoredSamples):  # known without decoding any
            return cls(samples.lengths.tolist(), batch_size, seed, samples.media.tolist())
        lengths = [len(sample.ids) for sample in samples]
        return cls(lengths, batch_size, seed, [len(sample.media) for sample in samples])

    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of one pass over the data; the last of each window may be short."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.lengths))
        span = self.batch_size * WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(order), span):
            window = sorted(
                order[start : start + span], key=lambda i: (self.media[i], self.lengths[i])
            )
            batches += [
                [int(i) for i in window[first : first + self.batch_size]]
                for first in range(0, len(window), self.batch_size)
            ]
        return [batches[i] for i in rng.permutation(len(batches))]

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one pass."""
        span = self.batch_size * WINDOW
        starts = range(0, len(self.lengths), span)
        return sum(-(-min(span, len(self.lengths) - start) // self.batch_size) for start in starts)

    def batch(self, step: int) -> list[int]:
        """Return the sample numbers of a global step's batch (counted from 0)."""
        number, position = divmod(step, self.batches_per_epoch)
        if self._current is None or self._current[0] != number:
            self._current = (number, self.epoch(number))
        return self._current[1][position]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack samples into rows of at most ``capacity``, by first-fit decreasing.

    A sample longer than the capacity gets its own row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, left in enumerate(room):
            if lengths[index] <= left:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(max(capacity - lengths[index], 0))
    return rows
