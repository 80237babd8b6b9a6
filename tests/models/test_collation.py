"""Batches: padded and packed rows give the same loss, and no sample sees another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from modalign.data.readers import read_records
from modalign.data.records import Media
from modalign.data.supervision import Sample, tokenise
from modalign.data.validation import validate
from modalign.errors import DataError
from modalign.models.bridges import Features
from modalign.models.collation import Batch, Collator

NAMES = ["mlp", "resampler", "gated_cross_attention", "llama_adapter"]


class Numbered:
    """Features that depend on the medium's content."""

    def __init__(self, model: Any) -> None:
        self.encoder = model.encoders["image"]

    def counts(self, media: Sequence[Media]) -> list[int]:
        return [self.encoder.num_features] * len(media)

    def fetch(self, media: Sequence[Media]) -> dict[str, Any]:
        N, d = self.encoder.num_features, self.encoder.feature_size
        seeds = [int(medium.content_hash()[:8], 16) for medium in media]
        values = torch.stack(
            [torch.randn(N, d, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return {"features": {"image": Features(values, mask, self.encoder.grid)}}


def conversations() -> list[Any]:
    image = tiny.image
    return [
        tiny.record([image(0), "what is this?"], "seven", row=1),
        tiny.record("is two even or odd?", "even", row=2),
        tiny.record([image(1), "and", image(2), "which is larger?"], "the first one", row=3),
        tiny.record(["in ", image(3), " what?"], "no", "is it so?", "yes, it is", row=4),
        tiny.record("what is one plus one?", "two", row=5),
    ]


def parts(name: str, compose_tiny: Callable[..., Any]) -> tuple[Any, Collator, list[Sample]]:
    model, processor = compose_tiny(name)
    collator = tiny.collator(model, processor, Numbered(model))
    return model, collator, [tokenise(r, processor.tokenizer) for r in conversations()]


def losses(model: Any, batch: Batch) -> list[float]:
    """Loss of every sample, by the samples' numbers."""
    with torch.no_grad():
        logits = model(**batch.model_inputs(), use_cache=False).logits
    each = functional.cross_entropy(logits, batch.targets, reduction="none")
    return [float(each[batch.owner == i].sum()) for i in range(len(batch.samples))]


@pytest.mark.parametrize("name", NAMES)
def test_packed_padded_and_single_losses_are_equal(
    name: str, compose_tiny: Callable[..., Any]
) -> None:
    model, collator, samples = parts(name, compose_tiny)
    alone = [losses(model, collator([sample]))[0] for sample in samples]
    assert losses(model, collator(samples)) == pytest.approx(alone, rel=1e-5, abs=1e-4)
    assert losses(model, collator(samples[::-1])) == pytest.approx(alone[::-1], rel=1e-5, abs=1e-4)
    for capacity in (60, 100, 500, 2):
        batch = replace(collator, pack_length=capacity)(samples)
        assert losses(model, batch) == pytest.approx(alone, rel=1e-5, abs=1e-4)
    rows = replace(collator, pack_length=500)(samples).input_ids.shape[0]
    assert rows == 1
    # An independent account of one sample: labels through the model's own loss.
    entry = collator.entries["image"]
    stand_ins = entry.stand_ins(samples[3].media)
    ids, labels = samples[3].expanded([entry.token_id], stand_ins)
    with torch.no_grad():
        mean = model(
            torch.from_numpy(ids)[None],
            labels=torch.from_numpy(labels)[None],
            features=entry.fetch(samples[3].media)["features"],
        ).loss
    assert float(mean) * int((labels != -100).sum()) == pytest.approx(alone[3], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_sees_another(name: str, compose_tiny: Callable[..., Any]) -> None:
    model, collator, samples = parts(name, compose_tiny)
    packed = replace(collator, pack_length=500)
    before = losses(model, packed(samples))
    for changed, sample in enumerate(samples):
        ids = np.where(
            sample.ids == collator.entries["image"].token_id, sample.ids, (sample.ids + 3) % 300 + 5
        )
        other = replace(sample, ids=ids, media=tuple(tiny.image(99) for _ in sample.media))
        mixed = [*samples[:changed], other, *samples[changed + 1 :]]
        after = losses(model, packed(mixed))
        for i, (first, second) in enumerate(zip(before, after, strict=True)):
            assert (abs(first - second) < 1e-4) == (i != changed)


def test_positions_restart_and_padding_is_counted(compose_tiny: Callable[..., Any]) -> None:
    _, collator, samples = parts("mlp", compose_tiny)
    lengths = [collator.length(s) for s in samples]
    batch = replace(collator, pack_length=500)(samples)
    order = sorted(range(5), key=lambda i: -lengths[i])
    assert batch.position_ids[0].tolist() == [p for i in order for p in range(lengths[i])]
    assert batch.padding == 0
    assert batch.num_supervised == sum(int(s.supervised.sum()) for s in samples)
    rows = replace(collator, pack_length=max(lengths) + 1)(samples)
    assert rows.padding == pytest.approx(1 - sum(lengths) / rows.input_ids.numel())
    assert rows.padding > 0
    padded = collator(samples)
    assert padded.padding == pytest.approx(1 - sum(lengths) / (5 * max(lengths)))


def test_a_batch_without_any_media(compose_tiny: Callable[..., Any]) -> None:
    model, collator, samples = parts("mlp", compose_tiny)
    text = [samples[1], samples[4]]
    batch = collator(text)
    assert batch.features == {}
    assert not batch.signals
    alone = [losses(model, collator([sample]))[0] for sample in text]
    assert losses(model, batch) == pytest.approx(alone, rel=1e-5)


def test_samples_that_do_not_fit(compose_tiny: Callable[..., Any]) -> None:
    _, collator, samples = parts("mlp", compose_tiny)
    short = replace(collator, max_length=30)
    with pytest.raises(DataError, match=r"data\.jsonl:3: \d+ tokens, .* reads at most 30"):
        short(samples)
    with pytest.raises(DataError, match=r"data\.jsonl:1: 1 placeholders do not match its 2 media"):
        collator([replace(samples[0], media=(tiny.image(0), tiny.image(1)))])
    assert short([samples[1]]).input_ids.shape[0] == 1


def test_pixels_equal_cached_features(compose_tiny: Callable[..., Any], small_data: Path) -> None:
    model, processor = compose_tiny("mlp")
    records, _ = validate(read_records(str(small_data / "data.jsonl"), media_root=None))
    samples = [tokenise(r, processor.tokenizer) for r in records[:4]]
    collator = tiny.collator(model, processor)
    batch = collator(samples)
    assert len(batch.signals["pixel_values"]) == sum(len(s.media) for s in samples)
    with torch.no_grad():
        features = {"image": model.encode("image", batch.signals["pixel_values"])}
    other = replace(batch, signals={}, features=features)
    assert losses(model, other) == pytest.approx(losses(model, batch))
    moved = batch.to(torch.device("cpu"))
    assert moved.samples is batch.samples
    assert torch.equal(moved.signals["pixel_values"], batch.signals["pixel_values"])
