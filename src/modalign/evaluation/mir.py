"""Modality integration rate: how far a modality's tokens stay from text inside the language model.

Source: *Deciphering Cross-Modal Alignment ... with Modality Integration Rate* (arXiv 2410.07167): per
layer, hidden states at modality and at text positions are divided by the mean text norm, outliers beyond
three sigma dropped, the Frechet distance of the two Gaussians taken; MIR = log10 of the sum over layers.
Lower is closer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import linalg

from modalign.data.supervision import Sample
from modalign.models.collation import Collator

OUTLIER_SIGMAS = 3.0


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of Gaussians fitted to (n, D) and (m, D) points.

    The trace of the root of C1 C2 is taken from its eigenvalues, which are those of a positive
    semi-definite matrix (C1^1/2 C2 C1^1/2).
    """
    gap = first.mean(axis=0) - second.mean(axis=0)
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values = linalg.eigvals(np.atleast_2d(c1) @ np.atleast_2d(c2)).real.clip(min=0)
    return float(
        gap @ gap
        + np.trace(np.atleast_2d(c1))
        + np.trace(np.atleast_2d(c2))
        - 2 * np.sqrt(values).sum()
    )


def without_outliers(points: np.ndarray) -> np.ndarray:
    """Drop rows whose norm is further than three sigma from the mean norm."""
    norms = np.linalg.norm(points, axis=1)
    kept = np.abs(norms - norms.mean()) <= OUTLIER_SIGMAS * norms.std() + 1e-12
    return points[kept]


def layer_distance(modality: np.ndarray, text: np.ndarray) -> float:
    """Frechet distance of one layer after the text-norm scaling and outlier removal."""
    scale = np.linalg.norm(text, axis=1).mean()
    return frechet_distance(without_outliers(modality / scale), without_outliers(text / scale))


@torch.inference_mode()
def modality_integration_rate(
    call: Callable[..., Any], samples: Sequence[Sample], collator: Collator, device: torch.device
) -> float | None:
    """MIR over the given samples (100 are enough); None where no modality token enters the sequence."""
    chosen = [sample for sample in samples if sample.media][:100]
    if not chosen or collator.tokens_per_medium < 2:
        return None
    collator = replace(
        collator, pack_length=None
    )  # one sample per row: the mask tells what is text
    modality: list[list[np.ndarray]] = []
    text: list[list[np.ndarray]] = []
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
            if layer == len(modality):
                modality.append([])
                text.append([])
            modality[layer].append(values[image])
            text[layer].append(values[words])
    total = sum(
        layer_distance(np.concatenate(m), np.concatenate(t))
        for m, t in zip(modality, text, strict=True)
    )
    return float(np.log10(max(total, 1e-12)))
