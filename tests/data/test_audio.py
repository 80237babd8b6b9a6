"""Recordings: every format against the same tone, and everything that can be wrong with a file."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modalign.data.audio import blank_audio, check_audio, duration, open_audio
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.errors import UsageError

soundfile = pytest.importorskip("soundfile", reason="needs modalign[audio]")
av = pytest.importorskip("av", reason="needs modalign[audio]")
pytest.importorskip("soxr", reason="needs modalign[audio]")

RATE, TONE = 8000, 440.0


def tone(rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * TONE * np.arange(round(rate * seconds)) / rate)


def encoded(
    samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def audio(data: bytes) -> Media:
    return Media("audio", data=data)


def by_pyav(container: str, codec: str, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate).astype("f4")[None], "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=960)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            output.mux(stream.encode(part))
    return buffer.getvalue()


# --- formats, channels, rates -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-6),
        ("WAV", "DOUBLE", 1e-6),
        ("WAV", "ULAW", 2e-2),
        ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4),
    ],
)
def test_plain_samples(kind: str, subtype: str, tolerance: float) -> None:
    media = audio(encoded(tone(), kind, subtype))
    check_audio(media)
    samples = open_audio(media, RATE)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, tone(), atol=tolerance)
    assert duration(media) == 1.0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: encoded(tone(), "MP3"), id="mp3"),
        pytest.param(lambda: encoded(tone(), "OGG", "VORBIS"), id="ogg-vorbis"),
        pytest.param(lambda: encoded(tone(), "OGG", "OPUS"), id="ogg-opus"),
        pytest.param(lambda: by_pyav("mp4", "aac", 16000), id="m4a by PyAV"),
        pytest.param(lambda: by_pyav("webm", "libopus", 48000), id="webm by PyAV"),
    ],
)
def test_lossy_formats_keep_the_tone(data: Callable[[], bytes]) -> None:
    media = audio(data())
    check_audio(media)
    samples = open_audio(media, 16000)
    assert duration(media) == pytest.approx(1.0, abs=0.08)  # a codec pads to its frames
    assert len(samples) == pytest.approx(16000, abs=0.08 * 16000)
    middle = samples[4000:12000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 16000 / len(middle) == pytest.approx(TONE, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.1)


def test_channels_are_averaged() -> None:
    both = np.stack([tone(), -0.5 * tone()], axis=1)
    np.testing.assert_allclose(open_audio(audio(encoded(both)), RATE), 0.25 * tone(), atol=1e-4)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100])
def test_rates_are_converted(rate: int) -> None:
    samples = open_audio(audio(encoded(tone())), rate)
    assert len(samples) == rate
    inner = slice(rate // 10, -rate // 10)
    np.testing.assert_allclose(samples[inner], tone(rate)[inner], atol=2e-3)


def test_what_lies_above_the_new_rate_does_not_fold_back() -> None:
    high = 0.5 * np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000)
    samples = open_audio(audio(encoded(high, rate=16000)), 8000)
    assert np.abs(samples[400:-400]).max() < 1e-3


def test_blank_is_silence_of_the_same_size() -> None:
    blank = blank_audio(audio(encoded(tone(11025, 0.7), rate=11025)))
    assert duration(blank) == pytest.approx(0.7, abs=1e-4)
    assert not open_audio(blank, 16000).any()


def test_a_path_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    assert len(open_audio(Media("audio", path=str(tmp_path / "a.wav")), RATE)) == RATE


# --- length -------------------------------------------------------------------------------------


def test_a_long_clip_is_refused_or_cropped() -> None:
    media = audio(encoded(tone(seconds=3)))
    with pytest.raises(SignalError, match=r"longer than the limit of 2 s.*longer=crop"):
        open_audio(media, RATE, max_seconds=2)
    cropped = open_audio(media, RATE, max_seconds=2, crop=True)
    np.testing.assert_array_equal(cropped, open_audio(media, RATE)[: 2 * RATE])
    assert len(open_audio(media, RATE, max_seconds=3)) == 3 * RATE


def test_the_limit_holds_across_blocks() -> None:
    """The clip is longer than what is decoded at a time."""
    media = audio(encoded(tone(seconds=20)))
    assert len(open_audio(media, RATE, max_seconds=19.5, crop=True)) == 19.5 * RATE
    with pytest.raises(SignalError, match="limit of 10 s"):
        check_audio(media, max_seconds=10)


# --- what can be wrong --------------------------------------------------------------------------


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def patched(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + struct.pack("<I", value) + data[offset + 4 :]


def corrupt_mp3() -> bytes:
    data = encoded(tone(), "MP3")
    noise = np.random.default_rng(0).integers(0, 256, len(data) - 300, dtype=np.uint8)
    return data[:300] + noise.tobytes()


def with_sample(value: float) -> bytes:
    samples = tone()
    samples[RATE // 2] = value
    return encoded(samples, "WAV", "FLOAT")


def long_header(data: bytes) -> bytes:
    return patched(data, data.find(b"data") + 4, 2**24)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(lambda: b"", "the file is empty", id="empty file"),
        pytest.param(lambda: b"no sound at all" * 9, "not a known audio format", id="text"),
        pytest.param(lambda: encoded(tone()[:0]), "0 seconds long", id="0 seconds"),
        pytest.param(lambda: with_sample(np.nan), r"at 0\.50 s is NaN", id="nan"),
        pytest.param(lambda: with_sample(np.inf), r"at 0\.50 s is NaN or infinite", id="inf"),
        pytest.param(
            lambda: with_sample(1e30), "full scale of floats is 1", id="overflows once squared"
        ),
        pytest.param(corrupt_mp3, "damaged audio", id="corrupt mp3"),
        pytest.param(lambda: cut(encoded(tone(), "MP3"), 0.5), "it is truncated", id="half an mp3"),
        pytest.param(
            lambda: cut(encoded(tone()), 0.5), r"says 1\.00 s, but .* 0\.50 s", id="half a wav"
        ),
        pytest.param(lambda: cut(encoded(tone(), "FLAC"), 0.5), "damaged", id="half a flac"),
        pytest.param(
            lambda: cut(encoded(tone(), "OGG", "VORBIS"), 0.5), "damaged", id="half an ogg"
        ),
        pytest.param(lambda: long_header(encoded(tone())), "holds 1.00 s", id="lying length"),
        pytest.param(lambda: patched(encoded(tone()), 24, 3), "says 3 Hz", id="lying rate"),
        pytest.param(lambda: by_pyav("mp4", "aac", 16000)[:900], "audio format", id="half an m4a"),
        pytest.param(
            lambda: b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/x.ts\n", "audio format", id="playlist"
        ),
    ],
)
def test_bad_input_is_named(data: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.bin"
    path.write_bytes(data())
    media = Media("audio", path=str(path))
    for use in (check_audio, lambda media: open_audio(media, RATE), blank_audio):
        with pytest.raises(SignalError, match=message) as caught:
            use(media)
        assert caught.value.kind == "broken-media"
        assert str(caught.value).startswith(f"{path}: ")


def test_a_wav_written_to_a_pipe_is_taken_as_it_is() -> None:
    """Such writers do not know the length: the header promises nothing."""
    data = encoded(tone())
    streamed = patched(data, data.find(b"data") + 4, 0xFFFFFFFF)
    assert len(open_audio(audio(streamed), RATE)) == RATE


def test_an_mp3_without_a_stated_length_is_taken_as_it_is() -> None:
    """libsndfile estimates its length from the first frame; an estimate refuses nothing."""
    buffer = io.BytesIO()
    quiet_then_loud = np.concatenate([np.zeros(RATE), tone()])
    soundfile.write(
        buffer, quiet_then_loud, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    data = buffer.getvalue()
    second_frame = data.index(data[:2], 2)
    stripped = data[second_frame:]
    assert b"Xing" not in stripped
    assert duration(audio(stripped)) == pytest.approx(2.0, abs=0.3)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="does not exist") as caught:
        check_audio(Media("audio", path=str(tmp_path / "none.wav")))
    assert caught.value.kind == "missing-media"
    with pytest.raises(SignalError, match="cannot be read"):
        check_audio(Media("audio", path=str(tmp_path)))


def test_less_than_one_sample() -> None:
    with pytest.raises(SignalError, match="less than one sample at 1000 Hz"):
        open_audio(audio(encoded(tone()[:1], rate=48000)), 1000)


@pytest.mark.parametrize("library", ["soundfile", "soxr", "av"])
def test_a_missing_library_is_a_usage_error(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = by_pyav("mp4", "aac", 16000) if library == "av" else encoded(tone())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"library {library}: pip install '.\[audio\]'"):
        open_audio(audio(data), 22050)
