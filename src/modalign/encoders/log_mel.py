"""Log-mel spectrograms: the output of an ear-like filter bank in short windows of a recording.

Windows of 25 ms every 10 ms (Hann), power spectrum, triangular filters on Slaney's mel scale, logarithm. As
in Whisper (arXiv 2212.04356), values more than 80 dB below a clip's maximum are cut off.
"""

from __future__ import annotations

import functools
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from modalign.encoders.base import EncoderError

FLOOR = 1e-10
RANGE = 8.0  # decades of power kept below a clip's maximum: 80 dB


class MelSpec(TypedDict):
    """Settings of spectrograms.

    Attributes:
        rate: Hz of the recordings.
        bands: mel filters.
        window: window length in seconds.
        hop: step in seconds.
        mean: mean of every band over the training data; None: each clip is standardised separately.
        scale: standard deviation likewise.
    """

    rate: int
    bands: int
    window: float
    hop: float
    mean: list[float] | None
    scale: list[float] | None


def frame_sizes(spec: MelSpec) -> tuple[int, int]:
    """Return the samples of a window and of a hop."""
    return round(spec["window"] * spec["rate"]), round(spec["hop"] * spec["rate"])


def num_frames(samples: int, spec: MelSpec) -> int:
    """Return T of a recording: every sample is in a window; the last one is padded with silence."""
    window, hop = frame_sizes(spec)
    return 1 + max(0, -(-(samples - window) // hop))


def log_mel(signal: Any, spec: MelSpec) -> Tensor:
    """Compute log10 of the mel power of a recording (S,) at ``spec['rate']`` -> (T, bands)."""
    samples = torch.as_tensor(signal, dtype=torch.float32)
    window, hop = frame_sizes(spec)
    frames = num_frames(len(samples), spec)
    missing = window + (frames - 1) * hop - len(samples)
    pieces = torch.nn.functional.pad(samples, (0, missing)).unfold(0, window, hop)
    hann = torch.hann_window(window, dtype=pieces.dtype)
    power = torch.fft.rfft(pieces * hann, n=_fft_size(window)).abs() ** 2
    decades = (power @ _filters(spec["rate"], spec["bands"], window)).clamp_min(FLOOR).log10()
    return decades.clamp_min(decades.max() - RANGE)


def standardised(spectrogram: Tensor, spec: MelSpec) -> Tensor:
    """Standardise (T, bands) over the clip, or per band over the training data."""
    if spec["mean"] is None or spec["scale"] is None:
        scale = spectrogram.std(correction=0)
        centred = spectrogram - spectrogram.mean()
        return centred / scale if scale > 0 else centred  # silence stays zero
    return (spectrogram - torch.tensor(spec["mean"])) / torch.tensor(spec["scale"])


def _fft_size(window: int) -> int:
    return 1 << (window - 1).bit_length()


@functools.lru_cache
def _filters(rate: int, bands: int, window: int) -> Tensor:
    """Return triangular filters, (frequencies, bands).

    Raises:
        EncoderError: a band contains no frequency of the spectrum and would always be silent.
    """
    frequencies = _fft_size(window) // 2 + 1
    step = rate / _fft_size(window)
    bank = mel_filter_bank(
        frequencies, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )
    if not bank.any(axis=0).all():
        raise EncoderError(
            f"{bands} mel bands are too many for a spectrum of {frequencies} frequencies, "
            f"{step:g} Hz apart: use fewer bands or a longer window"
        )
    return torch.from_numpy(bank).float()
