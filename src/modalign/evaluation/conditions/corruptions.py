"""Corruptions of pictures and sounds: small pure functions in five severities, registered by name.

Pictures: the constants of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) for noise, blur and JPEG,
which were chosen for pictures of 224 pixels; the blur is scaled to the picture's shorter side. Rotation is ours.
Sounds: white noise at a signal-to-noise ratio, and a low-pass filter, the blur of a sound.

Written on Pillow, NumPy and SciPy: ``imagecorruptions`` has had no release since 2020 and brings OpenCV, Numba and
scikit-image; albumentations is no longer maintained, and its successor's licence is AGPL; neither knows sounds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import signal as filters

from modalign.named import Named

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 224  # pixels of the pictures that the constants were chosen for
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of a range of 1
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)  # standard deviation in pixels
QUALITY = (25, 18, 15, 10, 7)
DEGREES = (5.0, 10.0, 20.0, 30.0, 45.0)
DECIBELS = (20.0, 15.0, 10.0, 5.0, 0.0)  # of signal over noise
HERTZ = (4000.0, 2000.0, 1000.0, 500.0, 250.0)  # where the low pass loses 3 dB each way
_ORDER = 4  # of the low pass
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Sound:
    """A mono recording.

    Attributes:
        samples: (T,) within -1 and 1.
        rate: Hz.
    """

    samples: NDArray[np.float32]
    rate: int


Signal = Image.Image | Sound
corruption = Named(
    "corruption", "modalign.corruptions", "modalign.evaluation.conditions.corruptions"
)


def _at(values: Sequence[float], severity: int) -> float:
    return values[severity - 1]


@corruption("noise", modalities=("image", "audio"))
def noise(given: Signal, severity: int, rng: np.random.Generator) -> Signal:
    """Add Gaussian noise."""
    if isinstance(given, Sound):
        power = float(np.mean(np.square(given.samples, dtype=np.float64)))
        spread = np.sqrt(power / 10 ** (_at(DECIBELS, severity) / 10))
        noisy = given.samples + rng.normal(size=len(given.samples)) * spread
        return Sound(noisy.astype(np.float32), given.rate)
    values = np.asarray(given, dtype=np.float64) / 255
    noisy = values + rng.normal(size=values.shape) * _at(NOISE, severity)
    return Image.fromarray((np.clip(noisy, 0, 1) * 255).round().astype(np.uint8))


@corruption("blur", modalities=("image", "audio"))
def blur(given: Signal, severity: int, rng: np.random.Generator) -> Signal:
    """Remove what changes fast: by a Gaussian, or a Butterworth low pass without delay."""
    if isinstance(given, Sound):
        cut = min(_at(HERTZ, severity), 0.45 * given.rate)
        sections = filters.butter(_ORDER, cut, fs=given.rate, output="sos")
        pad = min(3 * (2 * len(sections) + 1), len(given.samples) - 1)
        passed = filters.sosfiltfilt(sections, given.samples.astype(np.float64), padlen=max(pad, 0))
        return Sound(passed.astype(np.float32), given.rate)
    return given.filter(ImageFilter.GaussianBlur(_at(BLUR, severity) * min(given.size) / SIDE))


@corruption("jpeg", modalities=("image",))
def jpeg(given: Signal, severity: int, rng: np.random.Generator) -> Signal:
    """Compress and decompress."""
    assert isinstance(given, Image.Image)
    buffer = io.BytesIO()
    given.save(buffer, "JPEG", quality=int(_at(QUALITY, severity)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


@corruption("rotate", modalities=("image",))
def rotate(given: Signal, severity: int, rng: np.random.Generator) -> Signal:
    """Turn to a random side, about the middle; what was outside is grey."""
    assert isinstance(given, Image.Image)
    angle = _at(DEGREES, severity) * (1 if rng.random() < 0.5 else -1)
    return given.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=_GREY)
