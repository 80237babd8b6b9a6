"""Modality dropout: what a sample loses, how often, and that one modality stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from modalign.data.records import Media, mark
from modalign.data.supervision import Sample, tokenise
from modalign.models.compose import prepare_tokenizer
from modalign.training.modality_dropout import dropped, without

KINDS = ("image", "audio", "vectors")


@pytest.fixture
def sample(tokenizer: Any) -> Sample:
    prepare_tokenizer(tokenizer, KINDS)
    media = [Media(kind, data=b"x") for kind in KINDS]
    return tokenise(tiny.record(["a ", *media, " what?"], "yes"), tokenizer)


@pytest.fixture
def tokens(tokenizer: Any, sample: Sample) -> dict[str, int]:
    return {kind: tokenizer.convert_tokens_to_ids(mark(kind)) for kind in KINDS}


def test_without_leaves_everything_else(sample: Sample, tokens: dict[str, int]) -> None:
    left = without(sample, "audio", tokens["audio"])
    assert [medium.modality for medium in left.media] == ["image", "vectors"]
    kept = sample.ids != tokens["audio"]
    assert kept.sum() == len(sample.ids) - 1
    assert left.ids.tolist() == sample.ids[kept].tolist()
    assert left.supervised.tolist() == sample.supervised[kept].tolist()


def test_each_modality_goes_as_often_as_said_and_one_stays(
    sample: Sample, tokens: dict[str, int]
) -> None:
    torch.manual_seed(0)
    p, n = 0.4, 4000
    left = [{m.modality for m in dropped(sample, p, tokens).media} for _ in range(n)]
    assert all(left)
    # Gone alone or with others: p; but where all three would go, one of them stays.
    expected = p - p**3 / 3
    for kind in KINDS:
        share = np.mean([kind not in one for one in left])
        assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_a_sample_of_one_modality_is_left_alone(tokenizer: Any) -> None:
    prepare_tokenizer(tokenizer, KINDS)
    alone = tokenise(tiny.record([tiny.image(0), tiny.image(1), "?"], "a"), tokenizer)
    assert dropped(alone, 0.9, {}) is alone
