"""Exact-match accuracy of the greedy answer, without generating it.

The greedy answer equals the reference exactly if, fed with the reference, the model's most likely token at every
answer position (end mark included) is the reference's. One forward pass therefore decides it. Wrong, unfinished
and missing answers count as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from modalign.data.records import Media
from modalign.data.supervision import Sample
from modalign.models.collation import Collator


@dataclass(frozen=True)
class Scores:
    """Per sample: whether the greedy answer is right, and the loss summed over its answer tokens."""

    correct: np.ndarray  # (n,) bool
    loss: np.ndarray  # (n,)
    tokens: np.ndarray  # (n,)
    said_yes: np.ndarray  # (n,) bool, the first answer token can begin "yes"

    @property
    def mean_loss(self) -> float:
        """The mean loss per supervised token."""
        return float(self.loss.sum() / max(self.tokens.sum(), 1))


def final_turn(sample: Sample) -> Sample:
    """Supervise the last answer only, as evaluation scores it."""
    flags = np.zeros_like(sample.supervised)
    flags[sample.prompt_length :] = sample.supervised[sample.prompt_length :]
    return replace(sample, supervised=flags)


@torch.no_grad()
def score(
    call: Callable[..., Any],
    samples: Sequence[Sample],
    collator: Collator,
    device: torch.device,
    batch_size: int = 64,
    yes_tokens: Collection[int] = (),
    *,
    every_turn: bool = False,
) -> Scores:
    """Score samples with a model in evaluation mode; equal samples are computed once.

    Their last answers count, or with ``every_turn`` all of them.
    """
    finals = list(samples) if every_turn else [final_turn(sample) for sample in samples]
    seen: dict[tuple[bytes, bytes, tuple[Media, ...]], int] = {}
    same = [
        seen.setdefault((each.ids.tobytes(), each.supervised.tobytes(), each.media), index)
        for index, each in enumerate(finals)
    ]
    n = len(finals)
    correct, loss = np.zeros(n, dtype=bool), np.zeros(n)
    tokens, yes = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    order = sorted(seen.values(), key=lambda i: (len(finals[i].media), len(finals[i].ids)))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collator([finals[i] for i in chosen]).to(device)
        logits = call(**batch.model_inputs(), use_cache=False).logits.float()
        guessed = logits.argmax(-1)
        losses = functional.cross_entropy(logits, batch.targets, reduction="none").cpu().numpy()
        owner = batch.owner.cpu().numpy()
        right = (guessed == batch.targets).cpu().numpy()
        for place, index in enumerate(chosen):
            own = owner == place
            correct[index] = bool(right[own].all()) and bool(own.any())
            loss[index], tokens[index] = losses[own].sum(), own.sum()
            if own.any():
                yes[index] = int(guessed[own][0]) in yes_tokens
    return Scores(correct[same], loss[same], tokens[same], yes[same])


def with_media(samples: Sequence[Sample], media: Sequence[tuple[Media, ...]]) -> list[Sample]:
    """Ask the same questions about other media."""
    return [replace(sample, media=other) for sample, other in zip(samples, media, strict=True)]


def blanked(samples: Sequence[Sample], blanks: Mapping[str, Media]) -> list[Sample]:
    """Replace every medium by its modality's blank one."""
    given = [tuple(blanks[medium.modality] for medium in sample.media) for sample in samples]
    return with_media(samples, given)


def shuffled(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Give every sample another sample's media; see :func:`exchanged`."""
    return with_media(samples, exchanged([sample.media for sample in samples], seed))


def exchanged(media: Sequence[tuple[Media, ...]], seed: int = 0) -> list[tuple[Media, ...]]:
    """Exchange media between owners with equally many media of the same modalities.

    Owners of the same media are placed together in a random order, which is rotated by the size of the largest
    such group: none keeps its own media, unless most have the same.
    """
    result = list(media)
    rng = np.random.default_rng(seed)
    kinds = [tuple(medium.modality for medium in own) for own in media]
    for kind in sorted(set(kinds) - {()}, key=lambda kind: (len(kind), kind)):
        groups: dict[tuple[Media, ...], list[int]] = {}
        for place, own in enumerate(media):
            if kinds[place] == kind:
                groups.setdefault(own, []).append(place)
        members = list(groups.values())
        order = [place for group in rng.permutation(len(members)) for place in members[group]]
        for here, there in zip(order, np.roll(order, max(map(len, members))), strict=True):
            result[here] = media[there]
    return result
