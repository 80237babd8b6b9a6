"""Figures that a trained connector reports on media: code usage, divergence and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modalign.connectors.base import Grid
from modalign.data.records import Media
from modalign.data.supervision import Sample
from modalign.models.collation import Collator
from modalign.models.modeling import ModalignForConditionalGeneration

ROWS = 25  # samples encoded at a time


@torch.inference_mode()
def connector_diagnostics(
    model: ModalignForConditionalGeneration,
    samples: Sequence[Sample],
    collator: Collator,
    device: torch.device,
) -> dict[str, float]:
    """Collect the figures of :meth:`Connector.diagnose` over the samples' distinct media.

    With several modalities a figure's name begins with its modality's.
    """
    found: dict[str, float] = {}
    for modality in model.connectors:
        chosen = _first_of_each(samples, modality)
        if not chosen:
            continue
        own = model.connector(modality).diagnose(
            _batches(model, modality, chosen, replace(collator, pack_length=None), device)
        )
        prefix = f"{modality}: " if len(model.connectors) > 1 else ""
        found |= {prefix + name: value for name, value in own.items()}
    return found


def _first_of_each(samples: Sequence[Sample], modality: str) -> list[Sample]:
    """Return the samples that contain a medium not seen before."""
    seen: set[Media] = set()
    chosen = []
    for sample in samples:
        own = {medium for medium in sample.media if medium.modality == modality}
        if own - seen:
            chosen.append(sample)
        seen |= own
    return chosen


def _batches(
    model: ModalignForConditionalGeneration,
    modality: str,
    samples: Sequence[Sample],
    collator: Collator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Grid | None]]:
    """Features, mask and grid of the samples' media, some at a time."""
    weight = next(model.connector(modality).parameters())
    for start in range(0, len(samples), ROWS):
        batch = collator(samples[start : start + ROWS]).to(device)
        given = model.encoded(batch.features, **batch.signals)[modality]
        yield given.values.to(weight.dtype), given.mask, given.grid
