"""Read recordings in blocks (so that limits apply before memory fills) and convert them to mono float32.

libsndfile (soundfile) reads WAV, FLAC, MP3, Ogg, AIFF, AU, CAF; PyAV reads the rest (AAC in MP4, WebM, WMA,
AMR). Both come with the extra ``audio``. soxr converts sample rates at high quality.
"""

from __future__ import annotations

import importlib
import io
import struct
import wave
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

import numpy as np

from modalign.data.modalities import Amount, Modality
from modalign.data.patience import within
from modalign.data.records import Media
from modalign.data.signals import MAX_STREAMS, SignalError, opened, too_much_memory
from modalign.errors import UsageError, extra, first_line

MAX_SECONDS = 600.0
RATES = (1_000, 768_000)  # Hz; a header that says anything else is wrong
MAX_AMPLITUDE = 32.0  # times full scale (30 dB); larger values are not on the scale of floats
CANCELLED = 1e-3  # share of the channels' level; the mean of channels in opposite phase is below it
MAX_SAMPLES = 2**28  # of all channels: ten minutes of eight at 48 kHz
BLOCK = 65_536  # samples decoded at a time, of all channels together if there are many

# Only plain audio formats: no playlists, scripts or other programs' data.
SOUNDFILE_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "MP3", "OGG", "AIFF", "AU", "CAF")
PYAV_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,aac,ac3,eac3,asf,amr,amrnb,amrwb,ogg,flac,mp3,wav"
# Programs that write WAV to a pipe write a placeholder for the length: 0, 0x7FFFF000
# (SoX), 0x7FFFFFFF, 0x80000000 (arecord), 0xFFFFFFFF (FFmpeg).
UNKNOWN_LENGTH = 0x7FFFF000
UNKNOWN_FRAMES = 2**60  # libsndfile's count if a stream (FLAC, say) does not state its length


def open_audio(
    media: Media, rate: int, max_seconds: float | None = None, *, crop: bool = False
) -> np.ndarray:
    """Decode a recording to mono (S,) float32 (the mean of its channels) at ``rate`` Hz.

    Args:
        media: file or bytes.
        rate: target sample rate in Hz.
        max_seconds: a longer recording is refused (default: ``MAX_SECONDS``).
        crop: take the beginning of a longer recording instead.

    Raises:
        SignalError: missing, damaged, truncated, empty, too long, or with samples that are not finite.
        UsageError: a library that decodes it is missing.
    """
    with ExitStack() as stack:
        recording = _recording(media, stack)
        blocks = _mono(recording, media, max_seconds or MAX_SECONDS, crop)
        if recording.rate != rate:
            blocks = _resampled(blocks, recording.rate, rate)
        samples = np.concatenate(list(blocks))
    if not len(samples):
        _refuse(media, f"less than one sample at {rate} Hz: remove the row")
    return samples


def _resampled(blocks: Iterator[np.ndarray], given: int, wanted: int) -> Iterator[np.ndarray]:
    """The same as resampling all at once; what a header says of its rate never fills the memory."""
    stream = _library("soxr").ResampleStream(given, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def decode_audio(media: Media, spec: dict[str, Any]) -> np.ndarray:
    """Read a clip as an encoder takes it: mono, at its rate.

    Raises:
        SignalError: it cannot be read, or is longer than the encoder takes.
    """
    crop = spec["longer"] == "crop"
    return open_audio(media, spec["rate"], spec["max_seconds"], crop=crop)


def check_audio(media: Media, *, max_seconds: float = MAX_SECONDS) -> None:
    """Decode a recording once, without keeping it, to check that `open_audio` will work.

    Raises:
        SignalError: as `open_audio` does.
    """
    with ExitStack() as stack:
        for _ in _mono(_recording(media, stack), media, max_seconds, crop=False):
            pass


def duration(media: Media) -> float:
    """Return the length in seconds, from the header or else by decoding.

    Raises:
        SignalError: as `open_audio` does.
    """
    with ExitStack() as stack:
        recording = _recording(media, stack)
        if recording.promised is not None:
            return recording.promised / recording.rate
        blocks = _mono(recording, media, MAX_SECONDS, crop=True)
        return sum(len(block) for block in blocks) / recording.rate


def native_audio(media: Media) -> tuple[np.ndarray, int]:
    """Return a recording's mono samples, (T,), at its own rate, and the rate in Hz.

    Raises:
        SignalError: as `open_audio` does.
    """
    with ExitStack() as stack:
        rate = _recording(media, stack).rate
    return open_audio(media, rate), rate


def blank_audio(media: Media) -> Media:
    """Make silence with another recording's length and rate."""
    found, rate = native_audio(media)
    samples = len(found)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * samples))
    return Media("audio", data=buffer.getvalue())


def seconds(media: Media) -> list[Amount]:
    """Return the amount that a server limits: the length."""
    found = duration(media)
    return [Amount("audio_seconds", found, f"{found:.1f} s")]


# --- from blocks to mono ------------------------------------------------------------------------


@dataclass
class _Recording:
    """An open recording.

    Attributes:
        rate: Hz.
        channels: of them.
        promised: samples per channel according to the header, if reliable.
        blocks: of (samples, channels) float32.
    """

    rate: int
    channels: int
    promised: int | None
    blocks: Iterator[np.ndarray]


def _mono(
    recording: _Recording, media: Media, max_seconds: float, crop: bool
) -> Iterator[np.ndarray]:
    """Yield blocks of mono samples and refuse anything invalid in them."""
    limit = round(max_seconds * recording.rate)
    if recording.promised is not None:
        _refuse_many(media, recording, min(recording.promised, limit))
    total = 0
    heard = channels = 0.0  # energy of the mean, and of all channels
    for block in _decoded(recording, media):
        mono = block.mean(axis=1, dtype=np.float32)
        # NaN fails every comparison, so this one refuses it too.
        if not (np.abs(mono) <= MAX_AMPLITUDE).all():
            place = int(np.argmin(np.abs(mono) <= MAX_AMPLITUDE))
            at = f"a sample at {(total + place) / recording.rate:.2f} s"
            if not np.isfinite(mono[place]):
                _refuse(media, f"{at} is NaN or infinite: export it again")
            _refuse(
                media,
                f"{at} is {mono[place]:,.0f}, but the full scale of floats is 1: divide the samples (by 32,768 "
                "if they are at 16-bit scale)",
            )
        total += len(mono)
        _refuse_many(media, recording, min(total, limit))
        heard += float(np.square(mono, dtype=np.float64).sum())
        channels += float(np.square(block, dtype=np.float64).mean(axis=1).sum())
        if total > limit:
            if not crop:
                choice = ", or train with the audio option max_seconds, or longer=crop"
                _refuse(
                    media,
                    f"longer than the limit of {max_seconds:g} s: cut it"
                    f"{choice if max_seconds < MAX_SECONDS else ''}",
                )
            yield mono[: len(mono) - (total - limit)]
            break
        yield mono
    if heard < CANCELLED**2 * channels:
        _refuse(
            media,
            "its channels are in opposite phase, so their mean is silence: invert one of them, or "
            "export a single channel",
        )
    if not total:
        _refuse(media, "0 seconds long: remove the row, or record it again")
    if recording.promised is not None and total < min(recording.promised, limit):
        _refuse(
            media,
            f"its header says {recording.promised / recording.rate:.2f} s, but it holds "
            f"{total / recording.rate:.2f} s: it is truncated; copy it again",
        )


def _decoded(recording: _Recording, media: Media) -> Iterator[np.ndarray]:
    try:
        yield from within(media, recording.blocks)
    except SignalError:
        raise
    except MemoryError:
        raise too_much_memory(media) from None
    except Exception as error:  # damage can cause any exception in a decoder
        _refuse(media, f"damaged audio ({first_line(error)}): copy it again")


def _refuse_many(media: Media, recording: _Recording, samples: int) -> None:
    """Refuse a recording of so many samples per channel that decoding it takes minutes."""
    if samples * recording.channels > MAX_SAMPLES:
        _refuse(
            media,
            f"{samples / recording.rate:,.0f} s of {recording.channels} channels at {recording.rate:,} Hz are "
            f"{samples * recording.channels:,} samples, more than the limit of {MAX_SAMPLES:,}: mix it down to "
            "one channel at a lower rate, or cut it",
        )


def _refuse(media: Media, message: str) -> NoReturn:
    raise SignalError(media, message) from None


# --- decoders -----------------------------------------------------------------------------------


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"reading audio needs the library {name}: {extra('audio')}") from None


def _recording(media: Media, stack: ExitStack) -> _Recording:
    """Open a recording with the first library that supports its format; `stack` closes it."""
    stream = stack.enter_context(opened(media))
    if not stream.read(1):
        _refuse(media, "the file is empty: copy it again")
    stream.seek(0)
    recording = _by_soundfile(stream, media, stack)
    if recording is None:
        stream.seek(0)
        recording = _by_pyav(stream, media, stack)
    low, high = RATES
    if not low <= recording.rate <= high:
        _refuse(
            media,
            f"its header says {recording.rate} Hz, which is not a valid sample rate: export it again",
        )
    return recording


def _by_soundfile(stream: BinaryIO, media: Media, stack: ExitStack) -> _Recording | None:
    """Open with libsndfile; None if it does not support the format or cannot read the stream."""
    soundfile = _library("soundfile")
    try:
        file = stack.enter_context(soundfile.SoundFile(stream))
    except soundfile.LibsndfileError as error:
        if error.code == 1:  # SF_ERR_UNRECOGNISED_FORMAT
            return None
        _refuse(media, f"damaged audio ({error.error_string}): copy it again")
    if file.format not in SOUNDFILE_FORMATS:
        return None
    here = stream.tell()
    promised: int | None = file.frames
    if file.format in ("WAV", "WAVEX"):
        promised = _wav_length(stream, file.frames)
    elif file.format == "MP3" and not _counts_frames(stream):
        promised = None
    if file.frames > UNKNOWN_FRAMES or (promised is None and not file.frames):
        return None  # a stream of unknown length, which libsndfile does not read to its end
    stream.seek(here)
    return _Recording(file.samplerate, file.channels, promised, _soundfile_blocks(file))


def _soundfile_blocks(file: Any) -> Iterator[np.ndarray]:
    size = max(BLOCK // file.channels, 1)
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        yield block


def _wav_length(stream: BinaryIO, counted: int) -> int | None:
    """Read the number of samples in a RIFF header; libsndfile itself uses the file's size.

    Args:
        stream: the file.
        counted: libsndfile's number, for encodings other than plain samples.

    Returns:
        None if the writer did not know the length.
    """
    stream.seek(12)
    align = 0
    while len(head := stream.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"fmt ":
            plain, align = struct.unpack("<H10xH", stream.read(14))
            if plain not in (1, 3, 0xFFFE):  # PCM, float, extensible
                return counted
            size -= 14
        elif name == b"data":
            return size // align if align and 0 < size < UNKNOWN_LENGTH else None
        stream.seek(size + size % 2, io.SEEK_CUR)
    return counted


def _counts_frames(stream: BinaryIO) -> bool:
    """Whether an MP3 states its length (Xing or Info header); otherwise libsndfile estimates it."""
    stream.seek(0)
    head = stream.read(65_536)
    return b"Xing" in head or b"Info" in head


def _by_pyav(stream: BinaryIO, media: Media, stack: ExitStack) -> _Recording:
    av = _library("av")
    try:
        # An open file, and only formats that cannot refer to others: nothing else is ever opened.
        options = {"format_whitelist": PYAV_FORMATS, "max_streams": str(MAX_STREAMS)}
        container = stack.enter_context(av.open(stream, options=options))
    except (av.FFmpegError, ValueError) as error:
        _refuse(
            media,
            f"not a known audio format ({first_line(error)}): save it as WAV, FLAC, MP3 or OGG",
        )
    if not container.streams.audio:
        _refuse(media, "the file contains no audio: remove the row")
    track = container.streams.audio[0]
    if track.codec_context is None or not track.rate:
        _refuse(media, "damaged audio (no sample rate): copy it again")
    return _Recording(track.rate, track.channels, None, _pyav_blocks(av, container, track))


def _pyav_blocks(av: Any, container: Any, track: Any) -> Iterator[np.ndarray]:
    planar = av.AudioResampler(format="fltp", rate=track.rate)
    for frame in container.decode(track):
        for converted in planar.resample(frame):
            yield converted.to_ndarray().T


AUDIO = Modality(
    name="audio",
    words="a sound",
    check=check_audio,
    blank=blank_audio,
    encoder="modalign.encoders.audio",
    loader="modalign.models.encoders.audio",
    endings=(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aiff", ".aif"),
    further_parts=("input_audio",),
    amounts=seconds,
    decode=decode_audio,
    title="A language model that hears",
    chat_part='{"type": "audio", "audio": samples}',
    chat_note="samples: (S,) float32 at the encoder's rate",
)
