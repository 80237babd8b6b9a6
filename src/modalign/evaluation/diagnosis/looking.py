"""Does the model look? The same questions with the right, a blank, another record's and a noise medium.

Many connectors reach a decent loss on what the language model guesses from the question alone. What is lost
without the medium shows its use: the accuracy of the greedy answer (teacher-forced, as in ``scoring``), and the
Kullback-Leibler divergence, in nats and averaged over the answer's tokens, of the answer's distribution with the
right medium from the one with the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modalign.data.modalities import blank_like, modality_of
from modalign.data.records import Record
from modalign.evaluation.diagnosis.reading import (
    ObservedModel,
    RecordInputs,
    media_of,
    with_media_of,
)
from modalign.evaluation.diagnosis.results import Diagnostic, diagnostic
from modalign.evaluation.scoring import exchanged
from modalign.models.bridges import signal_names
from modalign.numbers.sampling import Sampling

WITHOUT = ("blank", "shuffled", "noise")


def divergence(right: Tensor, other: Tensor) -> float:
    """Return the mean over A tokens of KL(right || other) in nats, from logits (A, V)."""
    p, q = (torch.log_softmax(each.double(), dim=-1) for each in (right, other))
    return float((p.exp() * (p - q)).sum(dim=-1).mean().clamp(min=0))


def is_right(logits: Tensor, answer: Tensor) -> bool:
    """Whether the greedy answer equals the reference at every position."""
    return bool((logits.argmax(dim=-1) == answer).all())


def noise_like(values: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    """Return Gaussian noise with the mean and deviation of signals (n, ...); gaps and padding stay.

    Args:
        values: encoder inputs; NaN marks missing values.
        mask: (n, T) True where there is signal, or None.
        seed: of the noise.
    """
    known = torch.isfinite(values)
    if mask is not None and mask.shape == values.shape[: mask.dim()]:
        known &= mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    given = values[known].float()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(values.shape, generator=generator).to(values.device)
    spread = given.std() if given.numel() > 1 else given.new_zeros(())
    noise = (given.mean() + drawn * spread).to(values.dtype)
    return torch.where(known, noise, values)


class Looking:
    """Collects answers with and without a modality's media, record by record."""

    def __init__(
        self,
        subject: ObservedModel,
        modality: str,
        records: Sequence[Record],
        sampling: Sampling,
        chance: float | None = None,
    ) -> None:
        self.chance = chance  # accuracy of a blind guesser
        self.subject, self.modality, self.sampling = subject, modality, sampling
        self.shuffled = exchanged([media_of(record, modality) for record in records], sampling.seed)
        self.right: dict[str, list[float]] = {"right": [], **{name: [] for name in WITHOUT}}
        self.divergences: dict[str, list[float]] = {name: [] for name in WITHOUT}

    def add(self, number: int, record: Record, given: RecordInputs, logits: Tensor) -> None:
        """Add a record: its number among all, its inputs, and (A, V) logits with the right media."""
        self.right["right"].append(is_right(logits, given.answer))
        own = media_of(record, self.modality)
        others = {
            "blank": [blank_like(medium) for medium in own],
            "shuffled": self.shuffled[number],
        }
        for name, media in others.items():
            if name == "shuffled" and tuple(media) == own:  # nobody else has other media
                self._note(name, given, logits, None)
                continue
            other = self.subject.given(with_media_of(record, self.modality, media))
            self._note(name, given, logits, self.subject.answer_logits(other))
        noisy = self._noisy(given, number)
        found = self.subject.answer_logits(given, noisy) if noisy is not None else None
        self._note("noise", given, logits, found)

    def _noisy(self, given: RecordInputs, number: int) -> dict[str, Tensor] | None:
        name, mask = signal_names(self.modality)
        values = given.inputs.get(name)
        if modality_of(self.modality).no_noise or values is None:
            return None
        noise = noise_like(values, given.inputs.get(mask), self.sampling.seed + number)
        return {**given.inputs, name: noise}

    def _note(self, name: str, given: RecordInputs, right: Tensor, other: Tensor | None) -> None:
        nothing = float("nan")
        self.right[name].append(nothing if other is None else is_right(other, given.answer))
        self.divergences[name].append(nothing if other is None else divergence(right, other))

    def result(self) -> Diagnostic:
        """Return accuracies, the losses without the medium, and divergences."""
        found = diagnostic("image_gain")
        right = {name: np.array(values, dtype=float) for name, values in self.right.items()}
        found.figures[f"accuracy, right {self.modality}"] = self.sampling.mean(
            right["right"], "share", self.chance
        )
        known = [name for name in WITHOUT if not np.isnan(right[name]).all()]
        gains = {name: right["right"] - right[name] for name in known}
        divergences = {name: np.array(self.divergences[name]) for name in known}
        for title, unit, values in (
            ("accuracy, ", "share", right),
            ("gain over ", "difference of shares", gains),
            ("KL from ", "nats", divergences),
        ):
            found.figures |= {
                title + name: self.sampling.mean(values[name], unit) for name in known
            }
        if "noise" not in known:
            why = modality_of(self.modality).no_noise
            why = why or "this model takes its signals in a form of its own"
            found.notes.append(f"Noise is not defined: {why}")
        if "shuffled" not in known:
            found.notes.append("Shuffling is not defined: all records hold the same media.")
        return found
