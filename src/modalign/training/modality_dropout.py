"""Modality dropout: in training, records with several modalities lose some of them at random.

A model that has always seen all modalities learns to rely on one; with dropout it answers from whatever a
record has (Neverova et al., ModDrop, arXiv 1501.00102).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from modalign.data.supervision import Sample


def without(sample: Sample, modality: str, token_id: int) -> Sample:
    """Return the sample without one modality's media and placeholders."""
    kept = sample.ids != token_id
    media = tuple(medium for medium in sample.media if medium.modality != modality)
    return replace(sample, ids=sample.ids[kept], supervised=sample.supervised[kept], media=media)


def dropped(sample: Sample, probability: float, token_ids: Mapping[str, int]) -> Sample:
    """Drop modalities of a sample with several at random; at least one stays.

    Args:
        sample: with any number of media.
        probability: of dropping each modality.
        token_ids: modality -> its placeholder.

    Draws from torch's default generator, which the trainer seeds at every step.
    """
    modalities = sorted({medium.modality for medium in sample.media})
    if len(modalities) < 2:
        return sample
    gone = (torch.rand(len(modalities)) < probability).numpy()
    if gone.all():
        gone[int(torch.randint(len(modalities), ()))] = False
    for modality in np.asarray(modalities)[gone]:
        sample = without(sample, str(modality), token_ids[str(modality)])
    return sample
