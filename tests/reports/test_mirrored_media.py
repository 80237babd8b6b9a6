"""Pictures and videos that are stored turned or mirrored.

A video mirrored by its display matrix was shown upside down.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.data.video import open_video
from reports.threads import reported

# EXIF's orientations: what the stored picture's first row and first column are (CIPA DC-008, 4.6.5).
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
# The same as a display matrix, (a, b, c, d) of x' = a x + c y, y' = b x + d y.
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


def stored() -> np.ndarray:
    """(32, 48, 3): every corner has a grey of its own."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24] = 250, 170, 90
    return pixels


def upright(orientation: int) -> np.ndarray:
    """What is to be seen."""
    row, column = SIDES[orientation]
    pixels = stored()
    if row in ("left", "right"):
        pixels, row, column = pixels.swapaxes(0, 1), column, row
    if row == "bottom":
        pixels = pixels[::-1]
    return pixels[:, ::-1] if column == "right" else pixels


@reported("mpv-player/mpv#16090")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", SIDES)
def test_pictures(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored()).save(file, form, exif=exif)
    seen = np.asarray(open_image(Media("image", data=file.getvalue())))
    assert seen.shape == upright(orientation).shape
    assert np.abs(seen.astype(int) - upright(orientation)).mean() < 4


@reported("FFMS/ffms2#317", "WebKit/WebKit#73877")
@pytest.mark.parametrize("orientation", SIDES)
def test_videos(orientation: int) -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(stored(), format="rgb24")))
        output.mux(stream.encode(None))
    content = bytearray(file.getvalue())
    at = (
        content.index(b"tkhd") + 44
    )  # ISO 14496-12, 8.3.2: the matrix of a track header of version 0
    assert struct.unpack_from(">9i", content, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    a, b, c, d = (number * 65536 for number in MATRICES[orientation])
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 2**30)
    seen = open_video(Media("video", data=bytes(content)), 1).frames[0]
    assert seen.shape == upright(orientation).shape
    assert np.abs(seen.astype(int) - upright(orientation)).mean() < 4
