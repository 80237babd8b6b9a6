"""Audio encoders: turn recordings into features (n, N, d) in temporal order; N depends on the length.

Four kinds: log-mel patches without parameters, a small convolutional encoder over log-mel trained with
the model, any Hugging Face speech encoder (``speech.py``), and a user's own module over waveforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modalign.encoders.base import (
    EncoderError,
    Prepared,
    SignalEncoder,
    imported,
    padded,
    prefix_mask,
)
from modalign.encoders.log_mel import log_mel, num_frames, standardised
from modalign.encoders.speech import SpeechTower, by_length, filled, num_features, prepare_speech


class LogMelPatches(SignalEncoder):
    """No encoder: P frames of a spectrogram are concatenated into one feature.

    Like the patches of AST (arXiv 2104.01778) and Fuyu, cut only along time.

    Args:
        bands: mel bands of the spectrogram.
        patch: P, frames per feature; a partial last patch is padded with zeros (the mean).
        frames: frames of the longest clip.
    """

    def __init__(self, bands: int, patch: int, frames: int) -> None:
        super().__init__()
        self.patch = patch
        self.feature_size, self.num_features = bands * patch, -(-frames // patch)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spectrograms (n, T, bands) -> (n, ceil(T / P), P bands)."""
        values, mask = _silenced(values, mask)
        missing = -values.shape[1] % self.patch
        whole = nn.functional.pad(values, (0, 0, 0, missing))
        counts = -(-mask.sum(dim=1) // self.patch)
        features = whole.unflatten(1, (-1, self.patch)).flatten(2)
        return features, prefix_mask(counts, features.shape[1])


class ConvEncoder(SignalEncoder):
    """Convolutions over time, each with a layer norm over channels and a GELU; trained with the model.

    The front of Whisper's encoder (arXiv 2212.04356), some layers deep, without the transformer.
    Padding is zero after every layer, as beyond the end of a clip, so batching does not change features.

    Args:
        bands: mel bands of the spectrogram.
        width: d, channels of every layer.
        strides: one per layer; their product is the reduction.
        kernel: odd, frames that one output reads.
        dropout: after every layer.
        frames: frames of the longest clip.
    """

    fresh = True

    def __init__(
        self,
        bands: int,
        width: int,
        strides: Sequence[int],
        kernel: int,
        dropout: float,
        frames: int,
    ) -> None:
        super().__init__()
        sizes = [bands, *[width] * len(strides)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, width, kernel, stride, padding=kernel // 2)
            for inputs, stride in zip(sizes, strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in strides)
        self.dropout = nn.Dropout(dropout)
        self.strides = list(strides)
        self.feature_size, self.num_features = width, reduced(frames, strides)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spectrograms (n, T, bands) -> (n, N, width)."""
        x, mask = _silenced(values, mask)
        counts = mask.sum(dim=1)
        for convolution, norm, stride in zip(
            self.convolutions, self.norms, self.strides, strict=True
        ):
            x = norm(convolution(x.transpose(1, 2)).transpose(1, 2))
            x = self.dropout(nn.functional.gelu(x))
            counts = -(-counts // stride)
            x, mask = _silenced(x, prefix_mask(counts, x.shape[1]))
        return x, mask


def reduced(frames: int, strides: Sequence[int]) -> int:
    """Return the length after convolutions with odd kernels and half padding."""
    for stride in strides:
        frames = -(-frames // stride)
    return frames


def _silenced(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Set values to zero where the mask is False; return the mask, created if missing."""
    if mask is None:
        return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return values.masked_fill(~mask.unsqueeze(-1), 0.0), mask


class ImportedAudio(SignalEncoder):
    """A user's own module, by import path ``package.module:Class`` and keyword arguments.

    It maps waveforms (n, S) of one length to (n, N, d); N as a function of S was measured on loading.
    Clips of equal length run together, so it never sees padding.
    """

    def __init__(
        self, path: str, arguments: dict[str, Any], feature_size: int, features: int
    ) -> None:
        super().__init__()
        self.module = imported(path, arguments)
        self.feature_size, self.num_features = feature_size, features

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms (n, S) -> (n, N, d)."""
        return by_length(self.module, values, mask)


def build(spec: dict[str, Any]) -> SignalEncoder:
    """Build an encoder from its description (``kind``: patches, conv, speech or module)."""
    kind = spec["kind"]
    if kind == "patches":
        return LogMelPatches(spec["mel"]["bands"], spec["patch"], spec["frames"])
    if kind == "conv":
        sizes = {key: spec[key] for key in ("width", "strides", "kernel", "dropout", "frames")}
        return ConvEncoder(spec["mel"]["bands"], **sizes)
    if kind == "speech":
        return SpeechTower(spec)
    if kind == "module":
        return ImportedAudio(
            spec["path"], spec["arguments"], spec["feature_size"], spec["num_features"]
        )
    raise EncoderError(f"unknown audio encoder {kind!r}; known: patches, conv, speech, module")


def prepare(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """Convert waveforms (S_i,), numpy float32 at ``spec['rate']``, to the encoder's input."""
    kind = spec["kind"]
    if kind == "speech":
        return prepare_speech(spec, signals)
    if kind == "module":
        waveforms = [filled(signal, spec["min_samples"]) for signal in signals]
        return padded(waveforms, [num_features(len(w), spec["steps"]) for w in waveforms])
    spectrograms = [standardised(log_mel(s, spec["mel"]), spec["mel"]) for s in signals]
    strides = [spec["patch"]] if kind == "patches" else spec["strides"]
    return padded(
        spectrograms, [reduced(num_frames(len(s), spec["mel"]), strides) for s in signals]
    )
