"""Media whose headers say anything: a reader gives a signal or one error that names the medium, and nothing else.

A generator of odd inputs runs against the readers.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modalign.data.audio import check_audio, duration, open_audio
from modalign.data.images import check_image, open_image, pixels
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.video import amounts, check_video, open_video
from reports.threads import tried

RATE = 8_000
HEAD = 400  # bytes in which headers are
NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
FORMS = ("<I", ">I", "<H", ">H", "B")


def picture(form: str, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    noise = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    (noise.convert("P") if form == "GIF" else noise).save(file, form, **options)
    return file.getvalue()


def sound(form: str, subtype: str | None = None) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    tone = np.sin(np.arange(RATE // 4) / 5) / 2
    soundfile.write(file, np.stack([tone, tone / 2], axis=1), RATE, format=form, subtype=subtype)
    return file.getvalue()


def moving(form: str, codec: str, layout: str) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, layout
        for number in range(4):
            grey = np.full((32, 48, 3), 60 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


WRITERS: dict[str, Callable[[], bytes]] = {
    "png": lambda: picture("PNG"),
    "jpeg": lambda: picture("JPEG", exif=Image.Exif()),
    "progressive": lambda: picture("JPEG", progressive=True),
    "gif": lambda: picture("GIF"),
    "webp": lambda: picture("WEBP"),
    "tiff": lambda: picture("TIFF", compression="tiff_lzw"),
    "bmp": lambda: picture("BMP"),
    "ppm": lambda: picture("PPM"),
    "jpeg2000": lambda: picture("JPEG2000"),
    "wav": lambda: sound("WAV"),
    "wav of floats": lambda: sound("WAV", "FLOAT"),
    "flac": lambda: sound("FLAC"),
    "ogg": lambda: sound("OGG"),
    "mp3": lambda: sound("MP3"),
    "aiff": lambda: sound("AIFF"),
    "caf": lambda: sound("CAF"),
    "mp4": lambda: moving("mp4", "libx264", "yuv420p"),
    "matroska": lambda: moving("matroska", "ffv1", "bgr0"),
    "avi": lambda: moving("avi", "mpeg4", "yuv420p"),
    "mpegts": lambda: moving("mpegts", "libx264", "yuv420p"),
    "animation": lambda: moving("gif", "gif", "rgb8"),
}


def uses(name: str) -> list[Callable[[Media], object]]:
    """What reads a medium, under small limits: a number may say gigabytes."""
    if name in list(WRITERS)[:9]:
        size = {"max_pixels": 100_000}
        return [pixels, lambda m: check_image(m, **size), lambda m: open_image(m, **size)]
    if name in list(WRITERS)[9:16]:
        return [
            duration,
            lambda m: check_audio(m, max_seconds=2),
            lambda m: open_audio(m, 4_000, 2, crop=True),
        ]
    limits = {"max_pixels": 100_000, "max_frames": 100}
    return [amounts, lambda m: check_video(m, **limits), lambda m: open_video(m, 2, **limits)]


@st.composite
def odd(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of which a few numbers, mostly in its head, say something else; some end early."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        form = draw(st.sampled_from(FORMS))
        value = draw(st.sampled_from(NUMBERS)) & (256 ** struct.calcsize(form) - 1)
        last = len(found) - struct.calcsize(form)
        struct.pack_into(form, found, draw(st.integers(0, min(HEAD, last))), value)
    if draw(st.integers(0, 4)) == 0:
        del found[draw(st.integers(0, len(found))) :]
    return bytes(found)


@tried("media with odd numbers in their headers")
@pytest.mark.parametrize("name", WRITERS)
def test_a_signal_or_the_one_error(name: str) -> None:
    content = WRITERS[name]()
    for use in uses(name):
        use(Media("any", data=content))  # as it was written, it is fine

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(odd(content))
    def look(changed: bytes) -> None:
        for use in uses(name):
            with suppress(SignalError):
                use(Media("any", data=changed))

    look()
