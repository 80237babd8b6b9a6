"""Choose the frames of a video to keep, from their times and how much they change.

* ``uniform``: the video's time is cut into F equal segments; from each, the frame shown at its centre.
* ``scene``: a scene begins where the luma histogram changes by more than ``SCENE_CHANGE``; the F - 1
  largest changes count, the earlier of equal ones. F frames are assigned to the scenes, one each
  and the rest one by one where time per frame is longest (D'Hondt); a scene's time is then cut into
  equal segments as above. Without a change of scene this equals ``uniform``.

No frame is used twice: a video with fewer frames than requested gives those it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Sampling = Literal["uniform", "scene"]
MISSING = 0.1  # share of a video's time that may be missing before it counts as truncated
SCENE_CHANGE = 0.3  # from 0, equal histograms, to 1, nothing in common
THUMBNAIL, BINS = (
    32,
    16,
)  # a frame's luma is sampled at 32 x 32 points, in four quarters and 16 bins


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        times: (n,) seconds, ascending.
        changes: (n,) how much each frame differs from the previous one, if that was computed.
        seen: whether all frames were decoded for this.
    """

    times: np.ndarray
    changes: np.ndarray
    seen: bool

    @property
    def end(self) -> float:
        """When the last frame stops being shown: after the usual gap between frames."""
        gap = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0
        return float(self.times[-1]) + gap

    @property
    def reached(self) -> float:
        """The time that a decoder must reach to have decoded the video."""
        return float(self.times[-1]) - MISSING * (self.end - float(self.times[0]))


def wanted_times(timeline: Timeline, frames: int, sampling: Sampling) -> np.ndarray:
    """Return the (up to F,) times of the frames to keep, ascending and distinct."""
    times = timeline.times
    if len(times) <= frames:
        return times
    starts = [float(times[0])]
    if sampling == "scene":
        cuts = np.flatnonzero(timeline.changes > SCENE_CHANGE)
        largest = cuts[np.argsort(-timeline.changes[cuts], kind="stable")][: frames - 1]
        starts += [float(times[index]) for index in np.sort(largest)]
    lengths = np.diff([*starts, timeline.end])
    shares = np.ones(len(starts), int)
    for _ in range(frames - len(starts)):
        shares[np.argmax(lengths / (shares + 1))] += 1
    centres = [
        start + length * (place + 0.5) / share
        for start, length, share in zip(starts, lengths, shares, strict=True)
        for place in range(share)
    ]
    return np.unique(times[np.searchsorted(times, centres, side="right") - 1])


def luma_histogram(luma: np.ndarray) -> np.ndarray:
    """Compute the brightness histogram of each quarter.

    Args:
        luma: (THUMBNAIL, THUMBNAIL) uint8.

    Returns:
        (4 * BINS,) shares of the bins in each quarter; sums to 1.
    """
    half = THUMBNAIL // 2
    quarters = luma.reshape(2, half, 2, half).transpose(0, 2, 1, 3).reshape(4, -1)
    bins = quarters.astype(int) * BINS // 256 + np.arange(4)[:, None] * BINS
    return np.bincount(bins.ravel(), minlength=4 * BINS) / luma.size


def change(before: np.ndarray, now: np.ndarray) -> float:
    """Total variation distance of two histograms: 0 if equal, 1 if disjoint."""
    return float(np.abs(now - before).sum() / 2)
