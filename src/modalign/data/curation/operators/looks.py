"""Compare what two images look like: perceptual hashes, then mean colours.

The hash sees only coarse contrasts: two drawings that differ in the colour of one small object can have the
same hash. So candidates are also compared by the mean colours of 8 x 8 cells, which resizing and
re-encoding hardly change.
"""

from __future__ import annotations

import numpy as np

from modalign.data.curation.inputs import MediumFacts

LOOK = np.dtype([("phash", np.uint64), ("cells", np.uint8, (192,))])
"""One image: its hash, and 8 x 8 mean colours."""


def look_of(facts: MediumFacts) -> np.ndarray | None:
    """Return hash and miniature of an image, (1,) of `LOOK`; None if it has no hash."""
    if facts.phash is None or facts.miniature is None:
        return None
    cells = np.frombuffer(facts.miniature, dtype=np.uint8)
    return np.array([(facts.phash, cells)], dtype=LOOK)


def compare_looks(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the differing bits of the hashes and the largest difference of a cell's colour; broadcasts."""
    distances = np.bitwise_count(first["phash"] ^ second["phash"])
    colours = np.abs(first["cells"].astype(np.int16) - second["cells"].astype(np.int16))
    return distances, colours.max(axis=-1)


def is_near(
    distances: np.ndarray, differences: np.ndarray, distance: int, tolerance: int | None
) -> np.ndarray:
    """Whether the differences from `compare_looks` are within the limits."""
    near: np.ndarray = distances <= distance
    return near if tolerance is None else near & (differences <= tolerance)
