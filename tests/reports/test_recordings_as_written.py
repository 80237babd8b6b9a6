"""Recordings whose headers or samples say something else than they seem to.

A WAV written to a pipe was called cut off, stereo in opposite phase became silence, and float
samples at 16-bit scale passed.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from modalign.data.audio import blank_audio, check_audio, duration, open_audio
from modalign.data.records import Media
from modalign.data.signals import SignalError
from reports.threads import reported, tried

soundfile = pytest.importorskip("soundfile")
RATE = 8_000
TONE = (np.sin(np.arange(RATE) / 5) / 2).astype(np.float32)


def encoded(samples: np.ndarray, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=form, subtype=subtype)
    return file.getvalue()


def piped(content: bytes, length: int) -> Media:
    """A WAV file with another number in the length fields of its header."""
    at = content.index(b"data") + 4
    content = content[:at] + struct.pack("<I", length) + content[at + 4 :]
    return Media("audio", data=content[:4] + struct.pack("<I", length) + content[8:])


@reported(
    "Borewit/music-metadata#707",
    "kkroening/ffmpeg-python#118",
    "TooTallNate/node-wav#20",
    "rs1729/RS#39",
)
@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF7])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_from_a_pipe_is_as_long_as_it_is(length: int, subtype: str) -> None:
    media = piped(encoded(TONE, subtype=subtype), length)
    check_audio(media)
    assert duration(media) == 1.0
    np.testing.assert_allclose(open_audio(media, RATE), TONE, atol=1e-4)
    assert duration(blank_audio(media)) == 1.0


@tried("a FLAC written to a pipe, as the WAV")
def test_a_flac_from_a_pipe(tmp_path: object) -> None:
    content = bytearray(encoded(TONE, "FLAC"))
    at = content.index(b"fLaC") + 8 + 13  # of the length, 36 bits of the stream information
    content[at] &= 0xF0
    content[at + 1 : at + 5] = bytes(4)
    media = Media("audio", data=bytes(content))
    check_audio(media)
    np.testing.assert_allclose(open_audio(media, RATE), TONE, atol=1e-4)


@reported("kaldi-asr/kaldi#1567")
def test_what_is_cut_off_is_still_named() -> None:
    content = encoded(TONE)
    with pytest.raises(SignalError, match="truncated"):
        check_audio(Media("audio", data=content[: len(content) // 2]))


@reported("m-bain/whisperX#750")
@pytest.mark.parametrize("level", [1.0, 1e-4])
def test_channels_that_cancel_are_named(level: float) -> None:
    media = Media("audio", data=encoded(np.stack([TONE, -TONE], axis=1) * level, subtype="FLOAT"))
    for use in (check_audio, lambda media: open_audio(media, RATE)):
        with pytest.raises(SignalError, match="opposite phase"):
            use(media)
    with pytest.raises(SignalError, match="opposite phase"):
        open_audio(media, RATE, 0.5, crop=True)


@reported("m-bain/whisperX#750")
def test_silence_and_independent_channels_are_none_of_it() -> None:
    check_audio(Media("audio", data=encoded(np.zeros((RATE, 2)))))
    noise = np.random.default_rng(0).normal(size=(RATE, 2)) / 10
    check_audio(Media("audio", data=encoded(noise)))


@reported("thestk/rtaudio#343")
@pytest.mark.parametrize("scale", [32_768, 2**23, 2**31])
def test_floats_at_the_scale_of_whole_numbers_are_named(scale: int) -> None:
    media = Media("audio", data=encoded(TONE * scale, subtype="FLOAT"))
    with pytest.raises(SignalError, match=r"full scale of floats is 1"):
        check_audio(media)


@reported("thestk/rtaudio#343")
def test_floats_a_little_above_full_scale_stay() -> None:
    check_audio(Media("audio", data=encoded(TONE * 8, subtype="FLOAT")))
