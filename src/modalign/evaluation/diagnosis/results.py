"""What a diagnosis found: figures with n, interval and chance; curves over layers; words; points."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Unit = Literal["", "share", "points", "nats"]


class Figure(BaseModel):
    """A number.

    Attributes:
        value: itself.
        low, high: 95 % interval over records; None where there is none.
        n: records (or items, see the diagnostic) it comes from.
        chance: what it would be without any relation, where that is known.
        chance_high: 97.5 % of what chance gives.
        p: share of random pairings that give as much.
        unit: ``share`` of one, ``points`` (a difference of shares), ``nats``, or a plain number.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int
    chance: float | None = None
    chance_high: float | None = None
    p: float | None = None
    unit: Unit = ""


class WordShare(BaseModel):
    """A token that the lens reads, and the share of positions where it is the likeliest."""

    token: str
    share: float


class Diagnostic(BaseModel):
    """One way to look.

    Attributes:
        name: e.g. ``modality_gap``.
        title: for people.
        undefined: why there are no figures; None: there are.
        notes: what limits them here.
        figures: by name.
        curves: by name, a figure per layer; layer 0 is what the language model takes in.
        words: per layer, the likeliest tokens (lens).
        points: cloud -> positions on the two directions of largest spread (gap).
    """

    name: str
    title: str
    undefined: str | None = None
    notes: list[str] = []
    figures: dict[str, Figure] = {}
    curves: dict[str, list[Figure]] = {}
    words: list[list[WordShare]] = []
    points: dict[str, list[tuple[float, float]]] = {}


class ModalityDiagnosis(BaseModel):
    """All diagnostics of one modality.

    Attributes:
        modality: which.
        enters: ``prefix`` or ``in-layer``.
        encoder, connector: their names.
        records: that hold it.
        media: distinct ones.
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
        """The one of that name."""
        return next(each for each in self.diagnostics if each.name == name)


class Diagnosis(BaseModel):
    """What was found, with all that is needed to repeat it."""

    model: str
    data: str
    command: str
    version: str
    seed: int
    available: int  # records with media that the model takes
    records: int  # looked at
    patches: list[str] = []
    device: str
    dtype: str
    seconds: float
    modalities: list[ModalityDiagnosis]
