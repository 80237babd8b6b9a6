"""Pictures by their colours: shares of hue, saturation and value, compared by what two have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.index.lexical import Scores

BINS = 8  # of hue, saturation and value each
SIDE = 64  # pixels that a picture is made for its histogram


def histogram(picture: Media | None) -> np.ndarray:
    """Return shares of a picture's colours, (512,); zeros without a picture."""
    if picture is None:
        return np.zeros(BINS**3)
    cells = np.asarray(open_image(picture).convert("HSV").resize((SIDE, SIDE))).reshape(-1, 3)
    binned = cells.astype(int) * BINS // 256 @ np.array([BINS * BINS, BINS, 1])
    return np.bincount(binned, minlength=BINS**3) / len(cells)


def best_of(scores: Scores, owners: Sequence[int], count: int) -> Scores:
    """(n, m) scores of pictures, each of one of ``count`` owners -> (n, count): the best; -1 without any."""
    of = np.asarray(owners)
    return np.stack([scores[:, of == own].max(1, initial=-1.0) for own in range(count)], axis=1)


def overlap(first: np.ndarray, second: np.ndarray) -> Scores:
    """Return (n, m) intersections of histograms, (n, 512) and (m, 512)."""
    found: Scores = np.stack([np.minimum(row, second).sum(1) for row in first]).round(9)
    return found
