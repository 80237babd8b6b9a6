"""One small medium of every modality, and a model that takes all six."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import tiny
from modalign.data.modalities import modality_names
from modalign.data.records import Media, Record
from modalign.data.video import grey_video
from modalign.models.collation import Collator, RawSignals
from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.loading import Encoder, load_encoder

OPTIONS: dict[str, dict[str, Any]] = {
    "image": {"image_size": 16, "patch_size": 8},
    "video": {"image_size": 16, "patch_size": 8, "frames": 3},
}
CONNECTORS = {
    "image": "avgpool_mlp",
    "audio": "mlp",
    "video": "avgpool_mlp",  # needs a grid: works frame by frame
    "series": "linear",
    "table": "gated_cross_attention",
    "vectors": "resampler",
}


def sound(seconds: float, seed: int) -> Media:
    """Noise as a WAV file of 16 kHz."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 3000, int(16_000 * seconds)).astype("<i2")
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    return Media("audio", data=buffer.getvalue())


def inline(modality: str, value: Any) -> Media:
    """A medium whose value stands in the row."""
    return Media(modality, data=json.dumps(value).encode())


def medium(modality: str, seed: int = 0) -> Media:
    """A small medium; its content and, where the modality allows, its length follow the seed."""
    rng = np.random.default_rng(seed)
    length = 2 + seed % 2
    if modality == "image":
        return tiny.image(seed)
    if modality == "audio":
        return sound(0.2 * length, seed)
    if modality == "video":
        return grey_video(16 + seed, 16, np.arange(length) / 5)
    if modality == "series":
        return inline("series", rng.normal(size=(16 * length, 2)).round(3).tolist())
    if modality == "table":
        return inline("table", {"age": float(seed), "town": ("oslo", "rome")[seed % 2]})
    return inline("vectors", rng.normal(size=(length, 5)).round(3).tolist())


def encoders(modalities: Sequence[str] = modality_names()) -> list[Encoder]:
    """An encoder of each, in its form without pretrained weights."""
    media = [medium(modality, seed) for modality in modalities for seed in range(4)]
    torch.manual_seed(0)
    return [load_encoder(m, "none", media, OPTIONS.get(m, {})) for m in modalities]


def composed(
    llm: str,
    modalities: Sequence[str] = modality_names(),
    connectors: Mapping[str, str] | str = CONNECTORS,
) -> tuple[Any, Any, Collator]:
    """A model that takes these modalities, its processor, and a collator that decodes media."""
    parts = encoders(modalities)
    torch.manual_seed(1)
    model, processor = compose(load_language_model(llm, modalities=modalities), parts, connectors)
    with torch.no_grad():  # gates that start at zero would hide what they let through
        for parameter in model.connectors.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    sources = {encoder.modality: RawSignals(encoder) for encoder in parts}
    return model.eval(), processor, Collator.of(model, processor.tokenizer, sources, None)


def record(*modalities: str, row: int = 1, seed: int | None = None) -> Record:
    """A question about one medium of each of the modalities, with words between them."""
    number = row if seed is None else seed
    parts: list[str | Media] = []
    for modality in modalities:
        parts += [f"{modality} ", medium(modality, number)]
    return tiny.record([*parts, "what is it?"], ("seven", "a two", "no")[row % 3], row=row)
