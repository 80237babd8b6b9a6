"""Results of a diagnosis: figures with n, interval and chance; curves over layers; words; points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel

from modalign.numbers.estimate import Estimate
from modalign.numbers.sampling import GROUPS, Sampling

# name -> title, lead and, if undefined for in-layer connectors, in_layer: the reason
DIAGNOSTICS: dict[str, dict[str, str]] = yaml.safe_load(
    Path(__file__).with_name("diagnostics.yaml").read_text(encoding="utf-8")
)


class WordShare(BaseModel):
    """A token read by the lens, and the share of positions where it is the most likely."""

    token: str
    share: float


class Diagnostic(BaseModel):
    """One diagnostic.

    Attributes:
        name: e.g. ``modality_gap``.
        title: displayed title.
        undefined: why there are no figures, or None.
        notes: limits of the figures.
        figures: by name.
        curves: by name, a figure per layer; layer 0 is the language model's input.
        words: per layer, the most likely tokens (lens).
        points: cloud -> positions on the first two principal components (gap).
    """

    name: str
    title: str
    undefined: str | None = None
    notes: list[str] = []
    figures: dict[str, Estimate] = {}
    curves: dict[str, list[Estimate]] = {}
    words: list[list[WordShare]] = []
    points: dict[str, list[tuple[float, float]]] = {}


def diagnostic(name: str, **fields: Any) -> Diagnostic:
    """Create the diagnostic with a name in ``DIAGNOSTICS``."""
    return Diagnostic(name=name, title=DIAGNOSTICS[name]["title"], **fields)


def jackknifed(
    sampling: Sampling,
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    groups: int = GROUPS,
) -> list[Estimate]:
    """Estimate each value of a statistic of the records, see :meth:`Sampling.jackknife`."""
    values = statistic(np.arange(sampling.n))
    ends = sampling.jackknife(statistic, groups)
    return [
        Estimate(value=value, low=low, high=high, n=sampling.n, interval="jackknife", unit="")
        for value, low, high in zip(values, *ends, strict=True)
    ]


class ModalityDiagnosis(BaseModel):
    """All diagnostics of one modality.

    Attributes:
        modality: its name.
        enters: ``prefix`` or ``in-layer``.
        encoder, connector: their names.
        records: number of records with this modality.
        media: number of distinct media.
        diagnostics: in the order they are shown.
    """

    modality: str
    enters: str
    encoder: str
    connector: str
    records: int
    media: int
    diagnostics: list[Diagnostic]

    def diagnostic(self, name: str) -> Diagnostic:
        """Return the diagnostic with that name."""
        return next(each for each in self.diagnostics if each.name == name)


class Diagnosis(BaseModel):
    """The results, with everything needed to reproduce them."""

    model: str
    data: str
    command: str
    version: str
    seed: int
    available: int  # records with media that the model accepts
    records: int  # records used
    patches: list[str] = []
    device: str
    dtype: str
    seconds: float
    modalities: list[ModalityDiagnosis]
