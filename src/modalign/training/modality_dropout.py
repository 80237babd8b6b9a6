"""Modality dropout: in training, a record of several modalities loses some of them at random.

A model that always saw all of them learns to lean on one; with dropout it answers from whatever a record
has (Neverova et al., ModDrop, arXiv 1501.00102).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from modalign.data.supervision import Sample


def without(sample: Sample, modality: str, token_id: int) -> Sample:
    """Return the sample without its media of one modality, nor their placeholders."""
    kept = sample.ids != token_id
    media = tuple(medium for medium in sample.media if medium.modality != modality)
    return replace(sample, ids=sample.ids[kept], supervised=sample.supervised[kept], media=media)


def dropped(sample: Sample, probability: float, token_ids: Mapping[str, int]) -> Sample:
    """Drop each modality of a sample that has several; at least one stays.

    Args:
        sample: of any number of media.
        probability: of each modality's being dropped.
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
