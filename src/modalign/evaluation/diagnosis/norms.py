"""Vector lengths at layer 0: connector tokens against token embeddings.

A language model's first layers are tuned to the lengths of its embeddings. Much longer connector tokens drown
the text in the residual stream and make training unstable at the start; much shorter ones have little effect
until norms scale them up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic, jackknifed
from modalign.numbers.sampling import Sampling

Floats = NDArray[np.float64]


class Norms:
    """Collects lengths record by record."""

    def __init__(self, modality: str, sampling: Sampling) -> None:
        self.modality, self.sampling = modality, sampling
        self.rows: list[tuple[float, int, float, int]] = []

    def add(self, outputs: Tensor, text: Tensor) -> None:
        """Add a record: connector tokens (M, D) and the embeddings of its text positions (t, D)."""
        media, words = (each.double().norm(dim=1) for each in (outputs, text))
        self.rows.append((float(media.sum()), len(media), float(words.sum()), len(words)))

    def _statistics(self, kept: NDArray[np.int64]) -> Floats:
        media, count, words, number = np.array([self.rows[i] for i in kept], dtype=float).sum(
            axis=0
        )
        return np.array([media / count / (words / number), media / count, words / number])

    def result(self) -> Diagnostic:
        """Both mean lengths and their ratio."""
        figures = jackknifed(self.sampling, self._statistics)
        names = ("ratio", f"length of {self.modality} tokens", "length of text tokens")
        return diagnostic("norm_ratio", figures=dict(zip(names, figures, strict=True)))
