"""The starter's digit reader: finds and recognises the handwritten digits of a scene.

A kernel machine: 256 landmarks of the training crops (Nystroem approximation of an RBF kernel; Williams &
Seeger 2001), then multinomial logistic regression, both scikit-learn's. It is fitted on first use, in about a
second, only on the scans of the starter's training scenes; `docs/tools.md` states its accuracy on evaluation
scenes. The fitted arrays are stored as safetensors; reading needs only numpy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from modalign.cache import cache_directory
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.files import write_atomically
from modalign.starter.scenes import CELL, WORDS, Scene, render, scans, split_scans
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool

VERSION = 1
INK = 40  # grey value from which a pixel counts as written
FEWEST = 5  # pixels of ink that make a digit
SIDE = 12  # pixels of a crop as the classifier sees it
LANDMARKS = 256
GAMMA = 0.05  # of the kernel exp(-GAMMA |x - y|^2); this and PENALTY chosen on the validation scans
PENALTY = 10.0  # scikit-learn's C: inverse of the L2 penalty

Box = tuple[int, int, int, int]
Array = NDArray[np.float32]


class DigitReader(Tool):
    """Reads the starter's scenes: ``[{"text": "seven", "score": 0.98, "box": [26, 1, 44, 19]}, ...]``.

    Args:
        folder: folder of the fitted classifier; default: the cache directory.
        **settings: of :class:`~modalign.tools.base.Tool`.
    """

    def __init__(self, folder: Path | None = None, **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES))
        self._folder = folder

    @cached_property
    def weights(self) -> ReaderWeights:
        """Return the classifier, fitted if missing."""
        return fitted(self._folder)

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return self.weights.count

    def load(self) -> None:
        """Read or fit the classifier."""
        _ = self.weights

    def run(self, medium: Media, **arguments: Any) -> list[dict[str, Any]]:
        """Find and read the digits, in reading order of the scene's cells."""
        grey = np.asarray(open_image(medium).convert("L"), dtype=np.float32)
        boxes = find_digits(grey)
        if not boxes:
            return []
        chances = self.weights.chances(np.stack([crop(grey, box) for box in boxes]))
        best = [(WORDS[int(row.argmax())], round(float(row.max()), 4)) for row in chances]
        return [
            {"text": text, "score": score, "box": list(box)}
            for (text, score), box in zip(best, boxes, strict=True)
        ]

    def identity(self, hash_file: HashFile) -> Json:
        """Version, and the fitted numbers themselves."""
        return ["digit_reader", VERSION, self.weights.digest()]


@dataclass(frozen=True)
class ReaderWeights:
    """Landmarks (n, p), kernel weights (n, 10) and offsets (10,)."""

    landmarks: Array
    kernel: Array
    offset: Array

    @property
    def count(self) -> int:
        """How many numbers these are."""
        return self.landmarks.size + self.kernel.size + self.offset.size

    def chances(self, crops: Array) -> Array:
        """Probabilities of the ten digits for crops (m, p): (m, 10)."""
        squared = ((crops[:, None] - self.landmarks[None]) ** 2).sum(-1)
        scores = np.exp(-GAMMA * squared) @ self.kernel + self.offset
        grown = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)

    def digest(self) -> str:
        """Hash of the numbers."""
        return hashlib.sha256(save(vars(self))).hexdigest()


def find_digits(grey: Array) -> list[Box]:
    """Boxes (x0, y0, x1, y1) of the ink in each cell of a scene's 2 x 2 grid, grey values (h, w) in 0..255.

    Neighbouring digits may touch, so ink is separated by cells, not by connected components.
    """
    boxes = []
    for top in range(0, grey.shape[0], CELL):
        for left in range(0, grey.shape[1], CELL):
            ys, xs = np.nonzero(grey[top : top + CELL, left : left + CELL] > INK)
            if len(xs) >= FEWEST:
                x0, x1, y0, y1 = (int(v) for v in (xs.min(), xs.max(), ys.min(), ys.max()))
                boxes.append((left + x0, top + y0, left + x1 + 1, top + y1 + 1))
    return boxes


def crop(grey: Array, box: Box) -> Array:
    """Crop a box of a picture for the classifier: stretched to SIDE x SIDE, (SIDE * SIDE,) in 0..1."""
    left, top, right, bottom = box
    cut = Image.fromarray(grey[top:bottom, left:right])
    small = cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(np.asarray(small, np.float32).ravel() / 255, np.float32)


def fitted(folder: Path | None = None) -> ReaderWeights:
    """Return the classifier from its file, or fitted now and written there."""
    folder = folder or cache_directory()
    path = folder / f"digit-reader-{VERSION}.safetensors"
    try:
        return ReaderWeights(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):  # missing or damaged: fit again
        weights = fit()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(vars(weights)))
    return weights


def fit() -> ReaderWeights:
    """Fit on every training scan, each in a scene of its own, in the four cells by turns."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression

    crops, labels = training_crops()
    kernel = Nystroem(gamma=GAMMA, n_components=LANDMARKS, random_state=0)
    logistic = LogisticRegression(C=PENALTY, max_iter=1000)
    logistic.fit(kernel.fit_transform(crops), labels)
    return ReaderWeights(
        landmarks=np.ascontiguousarray(kernel.components_, dtype=np.float32),
        kernel=np.ascontiguousarray(kernel.normalization_.T @ logistic.coef_.T, dtype=np.float32),
        offset=logistic.intercept_.astype(np.float32),
    )


def training_crops() -> tuple[Array, NDArray[np.int64]]:
    """Crops (n, SIDE * SIDE) of the training scans, found as in any scene, and their labels (n,)."""
    rng = np.random.default_rng(0)
    rows = split_scans("train")
    crops = []
    for number, row in enumerate(rows):
        cells: list[int | None] = [None] * 4
        cells[number % 4] = int(scans()[1][row])
        a, b, c, d = cells
        picture = render(Scene((a, b, c, d), (int(row),)), rng).convert("L")
        grey = np.asarray(picture, dtype=np.float32)
        (box,) = find_digits(grey)
        crops.append(crop(grey, box))
    return np.stack(crops), scans()[1][rows]
