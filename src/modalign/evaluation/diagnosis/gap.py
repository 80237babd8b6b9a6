"""The modality gap: the distance between connector outputs and text embeddings.

Source: *Mind the Gap* (Liang et al. 2022, arXiv 2203.02053): the difference of the centroids of
L2-normalised embeddings. Here they are the connector's tokens and the token embeddings of the records' texts,
since both are inputs of the language model. Spreading or shrinking the sets also reduces the distance of
centroids, so the mean cosine within each and between both is reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic, jackknifed
from modalign.numbers.sampling import Sampling

KEPT = 400  # points plotted per cloud

Floats = NDArray[np.float64]
NAMES = ("gap", "cosine inside modality", "cosine inside text", "cosine between")


def normalised(points: Floats) -> Floats:
    """Scale (n, D) rows to length 1; rows of zeros stay zeros."""
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(norms > 0, norms, 1.0)


@dataclass
class _UnitSums:
    """Sums of normalised rows per record, enough for centroids and mean cosines."""

    totals: list[Floats] = field(default_factory=list)  # (D,) each
    squares: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)

    def add(self, rows: Floats, rng: np.random.Generator) -> None:
        unit = normalised(rows)
        self.totals.append(unit.sum(axis=0))
        self.squares.append(float((unit * unit).sum()))
        self.counts.append(len(unit))
        self.points.append(unit[rng.permutation(len(unit))[:4]])

    def of(self, kept: NDArray[np.int64]) -> tuple[Floats, float]:
        """Centroid and mean cosine over the rows of some records."""
        total = np.sum([self.totals[i] for i in kept], axis=0)
        count = sum(self.counts[i] for i in kept)
        squares = sum(self.squares[i] for i in kept)
        return total / count, float((total @ total - squares) / max(count * (count - 1), 1))


class Gap:
    """Collects a modality's gap record by record."""

    def __init__(self, modality: str, sampling: Sampling) -> None:
        self.modality, self.sampling = modality, sampling
        self.rng = np.random.default_rng(sampling.seed)
        self.media, self.text = _UnitSums(), _UnitSums()

    def add(self, outputs: Tensor, text: Tensor) -> None:
        """Add a record: connector tokens (M, D) and its text's token embeddings (t, D)."""
        self.media.add(outputs.double().cpu().numpy(), self.rng)
        self.text.add(text.double().cpu().numpy(), self.rng)

    def _statistics(self, kept: NDArray[np.int64]) -> Floats:
        media, inside = self.media.of(kept)
        text, inside_text = self.text.of(kept)
        return np.array(
            [np.linalg.norm(media - text), inside, inside_text, media @ text], dtype=float
        )

    def _floor(self) -> float:
        """The gap between two random halves of the records' texts, as a baseline."""
        n = len(self.text.counts)
        gaps = []
        for _ in range(20):
            order = self.rng.permutation(n)
            halves = [self.text.of(half)[0] for half in (order[: n // 2], order[n // 2 :])]
            gaps.append(float(np.linalg.norm(halves[0] - halves[1])))
        return float(np.mean(gaps))

    def result(self) -> Diagnostic:
        """Return the figures, and both clouds on their first two principal components."""
        names = [name.replace("modality", self.modality) for name in NAMES]
        found = jackknifed(self.sampling, self._statistics)
        figures = dict(zip(names, found, strict=True))
        figures["gap"].chance = self._floor()
        return diagnostic("modality_gap", figures=figures, points=self._clouds())

    def _clouds(self) -> dict[str, list[tuple[float, float]]]:
        clouds = {
            name: np.concatenate(sums.points)[:: max(1, sum(map(len, sums.points)) // KEPT)][:KEPT]
            for name, sums in ((self.modality, self.media), ("text", self.text))
        }
        everything = np.concatenate(list(clouds.values()))
        centre = everything.mean(axis=0)
        _, _, directions = np.linalg.svd(everything - centre, full_matrices=False)
        axes = directions[:2].T if len(directions) > 1 else np.eye(everything.shape[1], 2)
        return {
            name: [(float(x), float(y)) for x, y in (rows - centre) @ axes]
            for name, rows in clouds.items()
        }
