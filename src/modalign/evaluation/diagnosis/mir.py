"""Modality integration rate: the distance of a modality's tokens from text inside the language model.

Source: *Deciphering Cross-Modal Alignment ... with Modality Integration Rate* (arXiv 2410.07167): per
layer, hidden states at modality and at text positions are divided by the mean text norm, outliers beyond
three sigma dropped, the Frechet distance of the two Gaussians taken; MIR = log10 of the sum over layers.
Lower is closer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.data.supervision import Sample
from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic, jackknifed
from modalign.models.collation import Collator
from modalign.numbers.sampling import Sampling

OUTLIER_SIGMAS = 3.0
GROUPS = 10  # of the jackknife; each costs a full MIR
MOST_VALUES = 400_000_000  # numbers kept over all records, layers and positions
LEAST = 1e-12  # lower bound of the sum under the logarithm


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of Gaussians fitted to (n, D) and (m, D) points.

    The trace of the root of C1 C2 is the sum of the singular values of R1 R2^T for any R with
    C = R^T R: the centred points over sqrt(n - 1), or their triangular factor where that is smaller.
    """
    gap = first.mean(axis=0, dtype=float) - second.mean(axis=0, dtype=float)
    r1, r2 = _root(first), _root(second)
    shared = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    return float(gap @ gap + (r1**2).sum() + (r2**2).sum() - 2 * shared)


def _root(points: np.ndarray) -> np.ndarray:
    """Return R (r, D) with R^T R the covariance of (n, D) points, r the smaller of n and D."""
    points = points.astype(float)
    centred = (points - points.mean(axis=0)) / np.sqrt(max(len(points) - 1, 1))
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def without_outliers(points: np.ndarray) -> np.ndarray:
    """Drop rows whose norm is further than three sigma from the mean norm."""
    norms = np.linalg.norm(points, axis=1)
    kept = np.abs(norms - norms.mean()) <= OUTLIER_SIGMAS * norms.std() + 1e-12
    return points[kept]


def layer_distance(modality: np.ndarray, text: np.ndarray) -> float:
    """Return the Frechet distance of one layer after the text-norm scaling and outlier removal."""
    scale = np.linalg.norm(text, axis=1).mean()
    return frechet_distance(without_outliers(modality / scale), without_outliers(text / scale))


def integration_rate(distances: Sequence[float]) -> float:
    """Return log10 of the sum over layers."""
    return float(np.log10(max(sum(distances), LEAST)))


@torch.inference_mode()
def modality_integration_rate(
    call: Callable[..., Any], samples: Sequence[Sample], collator: Collator, device: torch.device
) -> float | None:
    """Return MIR over the samples (100 are enough), or None if no modality token enters the sequence."""
    chosen = [sample for sample in samples if sample.media][:100]
    if not chosen or collator.tokens_per_medium < 2:
        return None
    collator = replace(
        collator, pack_length=None
    )  # one sample per row, so that the mask marks text
    modality: dict[int, list[np.ndarray]] = defaultdict(list)
    text: dict[int, list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(chosen), 25):
        batch = collator(chosen[start : start + 25]).to(device)
        states = call(
            **batch.model_inputs(), use_cache=False, output_hidden_states=True
        ).hidden_states
        tokens = torch.tensor([entry.token_id for entry in collator.entries.values()])
        image = torch.isin(batch.input_ids.cpu(), tokens).numpy()
        words = batch.attention_mask.bool().cpu().numpy() & ~image
        for layer, state in enumerate(states):
            values = state.float().cpu().numpy()
            modality[layer].append(values[image])
            text[layer].append(values[words])
    return integration_rate(
        [layer_distance(np.concatenate(modality[n]), np.concatenate(text[n])) for n in text]
    )


class IntegrationRate:
    """Collects hidden states record by record: MIR with an interval, and the distance of every layer."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.rng = np.random.default_rng(sampling.seed)
        self.media: list[list[np.ndarray]] = []  # per record, per layer (M, D)
        self.text: list[list[np.ndarray]] = []
        self.thinned = 0

    def add(self, states: Sequence[Tensor], places: Tensor, words: Tensor) -> None:
        """Add a record: L + 1 hidden states (T, D), positions of the modality and of text."""
        width = len(states) * states[0].shape[1]
        most = max(4, MOST_VALUES // (2 * width * self.sampling.n))
        for kept, chosen in ((self.media, places), (self.text, words)):
            if len(chosen) > most:
                self.thinned = most
                picked = np.sort(self.rng.permutation(len(chosen))[:most])
                chosen = chosen[torch.from_numpy(picked).to(chosen.device)]
            kept.append([state[chosen].float().cpu().numpy() for state in states])

    def _statistics(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """MIR, then the distance of each layer."""
        layers = range(len(self.media[0]))
        distances = [
            layer_distance(
                *(np.concatenate([side[i][n] for i in kept]) for side in (self.media, self.text))
            )
            for n in layers
        ]
        return np.array([integration_rate(distances), *distances])

    def result(self) -> Diagnostic:
        """MIR and the curve over layers."""
        figures = jackknifed(self.sampling, self._statistics, GROUPS)
        notes = ["Compare it only between models that were shown equally many positions."]
        if self.thinned:
            notes.append(
                f"at most {self.thinned} positions of a record's modality and text were kept"
            )
        return diagnostic(
            "mir",
            figures={"MIR": figures[0]},
            curves={"Frechet distance": figures[1:]},
            notes=notes,
        )
