"""Attention mass: how much attention the answer pays to a modality's positions.

Per layer: the attention weights on the modality's positions, averaged over heads and over the positions that
predict the answer's tokens. Chance is uniform attention: the modality's share of the visible positions. Weights
show what is read, not what it is used for (Jain and Wallace 2019, arXiv 1902.10186).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic
from modalign.numbers.estimate import Estimate
from modalign.numbers.sampling import Sampling


def attention_mass(attention: Tensor, rows: Tensor, places: Tensor) -> float:
    """Return the mean over heads and rows of the attention weights on ``places``.

    Args:
        attention: (heads, T, T), rows sum to 1.
        rows: (r,) positions that read.
        places: (p,) positions that are read.
    """
    return float(attention[:, rows][:, :, places].double().sum(dim=-1).mean())


def uniform_mass(rows: Tensor, places: Tensor) -> float:
    """Return the same for uniform attention over all positions up to the reading one."""
    readable = (places[None] <= rows[:, None]).double().sum(dim=1)
    return float((readable / (rows + 1)).mean())


class AttentionMass:
    """Collects a modality's attention mass record by record."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.masses: list[list[float] | None] = []  # per record, per layer
        self.uniform: list[float] = []

    def add(
        self, attentions: Sequence[Tensor] | None, start: int, length: int, places: Tensor
    ) -> None:
        """Add a record whose answer begins at ``start`` and is ``length`` tokens long."""
        if attentions is None:
            self.masses.append(None)
            return
        rows = torch.arange(start - 1, start - 1 + length, device=places.device)
        self.masses.append([attention_mass(each, rows, places) for each in attentions])
        self.uniform.append(uniform_mass(rows, places))

    def result(self, why_not: str | None) -> Diagnostic:
        """Return a curve over layers and its mean, or why they are undefined."""
        found = diagnostic("attention_mass")
        known = [each for each in self.masses if each is not None]
        if not known:
            found.undefined = why_not or (
                "attention weights of sequences as long as these need too much memory, or the model's "
                "class does not return them"
            )
            return found
        nothing = [float("nan")] * len(known[0])
        masses = np.array([nothing if each is None else each for each in self.masses])
        chance = float(np.mean(self.uniform))

        def figure(values: np.ndarray) -> Estimate:
            return self.sampling.mean(values, "share", chance)

        found.figures["mean over layers"] = figure(masses.mean(axis=1))
        best = int(np.nanmean(masses, axis=0).argmax())
        found.figures[f"most, in layer {best}"] = figure(masses[:, best])
        found.curves["attention mass"] = [figure(column) for column in masses.T]
        if left_out := len(self.masses) - len(known):
            found.notes.append(f"{left_out} records are too long for attention weights to be kept")
        return found
