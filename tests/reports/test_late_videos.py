"""Videos whose first frame is shown late.

A video whose first frame is at 5 s was called cut off.
"""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.video import amounts, blank_video, check_video, open_video
from reports.threads import reported, tried

av = pytest.importorskip("av")
FORMS = [
    ("matroska", "ffv1", "bgr0"),
    ("mp4", "libx264", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("mpegts", "libx264", "yuv420p"),
    ("flv", "flv1", "yuv420p"),
]


def late(form: str, codec: str, pixels: str, begin: float, count: int = 30) -> bytes:
    """``count`` frames of 0.1 s, the first at ``begin`` seconds; frame i has the grey 8 i."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 48, 3), 8 * number, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = round(begin * 10) + number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@reported("pytorch/audio#3824", "meta-pytorch/torchcodec#567")
@pytest.mark.parametrize("begin", [0.0, 5.0, 100.0])
@pytest.mark.parametrize(("form", "codec", "pixels"), FORMS)
def test_late_is_whole(form: str, codec: str, pixels: str, begin: float) -> None:
    media = Media("video", data=late(form, codec, pixels, begin))
    check_video(media)
    clip = open_video(media, 3)
    # 3 s in three segments, counted from the first frame: centres 0.5, 1.5 and 2.5 s.
    np.testing.assert_allclose(clip.times, [0.5, 1.5, 2.5], atol=0.02)
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), [40, 120, 200], atol=4)
    assert {amount.limit: amount.value for amount in amounts(media)}[
        "video_seconds"
    ] == pytest.approx(3.0, abs=0.15)
    check_video(blank_video(media))


@tried("late videos with their second half cut off")
@pytest.mark.parametrize("begin", [0.0, 5.0])
def test_what_is_cut_off_is_still_named(begin: float) -> None:
    whole = late("matroska", "ffv1", "bgr0", begin)
    with pytest.raises(SignalError, match="truncated"):
        check_video(Media("video", data=whole[: len(whole) // 2]))
