"""Corruptions: what they do to a picture and to a sound, by formulas and by SciPy; and which media they reach."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.io import wavfile

import tiny
from modalign.data.audio import check_audio, native_audio
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.evaluation.conditions.corrupted import Corrupt, corrupted, corrupter
from modalign.evaluation.conditions.corruptions import (
    BLUR,
    DECIBELS,
    NOISE,
    SEVERITIES,
    Sound,
    corruption,
)

RATE = 16_000


def _grey(side: int = 224) -> Image.Image:
    return Image.new("RGB", (side, side), (128, 128, 128))


def _tone(hertz: float, seconds: float = 1.0) -> Sound:
    times = np.arange(int(RATE * seconds)) / RATE
    return Sound((0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32), RATE)


def _run(name: str, given: object, severity: int, seed: int = 0) -> object:
    return corruption.entry(name).function(given, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_spread(severity: int) -> None:
    found = _run("noise", _grey(), severity)
    values = np.asarray(found, dtype=float) / 255
    expected = NOISE[severity - 1]
    reach = np.quantile(values, 0.8413) - np.median(
        values
    )  # one standard deviation, seldom clipped
    assert reach == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_of_a_sound_has_its_ratio(severity: int) -> None:
    given = _tone(440)
    found = _run("noise", given, severity)
    assert isinstance(found, Sound)
    added = found.samples - given.samples
    ratio = 10 * np.log10(np.mean(given.samples**2) / np.mean(added**2))
    assert ratio == pytest.approx(DECIBELS[severity - 1], abs=0.3)


def test_blur_is_a_gaussian_in_proportion_to_the_picture() -> None:
    for side in (224, 112):
        picture = tiny.picture(1, side)
        found = np.asarray(_run("blur", picture, 3), dtype=float)
        sigma = BLUR[2] * side / 224
        expected = ndimage.gaussian_filter(
            np.asarray(picture, dtype=float), (sigma, sigma, 0), mode="nearest"
        )
        middle = slice(side // 4, -side // 4)
        assert np.abs(found - expected)[middle, middle].mean() < 3  # Pillow approximates by boxes


def test_blur_of_a_sound_keeps_the_low_and_removes_the_high() -> None:
    def loudness(sound: object) -> float:
        assert isinstance(sound, Sound)
        return float(np.sqrt(np.mean(sound.samples[2000:-2000] ** 2)))

    low, high = _tone(100), _tone(3000)
    assert loudness(_run("blur", low, 3)) == pytest.approx(loudness(low), rel=0.01)
    # A Butterworth of order 4, twice: (1 + (3000 / 1000)^8)^-1 of the amplitude.
    assert loudness(_run("blur", high, 3)) < 1e-3 * loudness(high)


def test_jpeg_loses_more_at_every_severity() -> None:
    picture = tiny.picture(3, 64)
    lost = [
        np.abs(np.asarray(_run("jpeg", picture, level), float) - np.asarray(picture, float)).mean()
        for level in SEVERITIES
    ]
    assert lost == sorted(lost)
    assert lost[0] > 0


def test_rotation_keeps_the_middle_and_greys_the_corners() -> None:
    picture = Image.new("RGB", (65, 65), (255, 0, 0))
    found = _run("rotate", picture, 5)
    assert isinstance(found, Image.Image)
    assert found.getpixel((32, 32)) == (255, 0, 0)
    assert found.getpixel((0, 0)) == (128, 128, 128)
    assert found.size == picture.size


def test_equal_media_are_corrupted_equally_and_others_are_left_alone() -> None:
    entry = corruption.entry("noise")
    first, again = (corrupted(tiny.image(1), entry, 3, seed=0) for _ in range(2))
    assert first.read() == again.read() != tiny.image(1).read()
    assert corrupted(tiny.image(1), entry, 3, seed=1).read() != first.read()
    assert open_image(first).size == open_image(tiny.image(1)).size
    table = Media("table", data=b"a,b\n1,2\n")
    assert corrupted(table, entry, 3, seed=0) is table
    record = tiny.record([tiny.image(1), "what?", tiny.image(2)], "yes")
    changed = corrupter(entry, 1, 0)(record)
    kinds = [p if isinstance(p, str) else p.modality for p in changed.messages[0].parts]
    assert kinds == ["image", "what?", "image"]
    assert changed.answer == "yes"


def test_a_corrupted_sound_can_be_read_again() -> None:
    buffer = io.BytesIO()
    wavfile.write(buffer, RATE, _tone(440, 0.2).samples)
    given = Media("audio", data=buffer.getvalue())
    for name in ("noise", "blur"):
        found = corrupted(given, corruption.entry(name), 5, seed=0)
        check_audio(found)
        samples, rate = native_audio(found)
        assert (len(samples), rate) == (3200, RATE)
        assert not np.allclose(samples, native_audio(given)[0])


def test_wrong_names_and_severities_are_refused() -> None:
    with pytest.raises(UsageError, match="no corruption is called 'nois'"):
        Corrupt(("nois",)).entries()
    with pytest.raises(UsageError, match="--severity 0, 6: severities are 1 to 5"):
        Corrupt(("noise",), (0, 3, 6)).entries()
    assert corruption.names()[:4] == ["noise", "blur", "jpeg", "rotate"]
