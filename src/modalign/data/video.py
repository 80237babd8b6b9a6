"""Read videos: some frames of a clip, chosen by their time, as 8-bit RGB.

PyAV (FFmpeg inside, no torchvision) decodes in two passes. The first reads every packet and thereby knows
when each frame is shown; the header's duration and number of frames are not used for this, but a file much
shorter than its header says is truncated and refused. The second decodes frame by frame and keeps the
chosen ones: memory is bounded by these, whatever the length of the video.

For the choice of frames see :mod:`modalign.data.frame_sampling`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

import numpy as np
from PIL import Image

from modalign.data.frame_sampling import (
    MISSING,
    THUMBNAIL,
    Sampling,
    Timeline,
    change,
    luma_histogram,
    wanted_times,
)
from modalign.data.modalities import Amount, Modality
from modalign.data.patience import within
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.video_container import decoded_frames, opened_video, pyav
from modalign.errors import UsageError, choose

MAX_PIXELS = 33_177_600  # of a frame: 7680 x 4320
MARGIN = 2  # frames are kept at no less than this many times the side that an encoder reads
MAX_FRAMES = 200_000  # of a video, kept or not: 111 minutes at 30 frames a second


@dataclass(frozen=True)
class Clip:
    """Frames of a video in the order of their times.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB.
        times: (F,) float64, seconds since the video's first frame.
    """

    frames: np.ndarray
    times: np.ndarray


def open_video(
    media: Media,
    frames: int,
    sampling: Sampling = "uniform",
    *,
    smallest_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
) -> Clip:
    """Decode up to F frames of a video, rotated, with transparency over white.

    Args:
        media: MP4, WebM, Matroska, AVI, MPEG-TS, animated GIF ... (``video_container.FORMATS``).
        frames: F, the maximum number of frames.
        sampling: how they are chosen.
        smallest_side: frames are shrunk by an integer factor that keeps both sides at least this long;
            None keeps their size.
        max_pixels: limit per frame, checked before decoding.
        max_frames: limit per video, checked before decoding.

    Returns:
        One to F frames; all of the first one's size.

    Raises:
        SignalError: missing, not a video, without frames, truncated, damaged, over a limit.
        UsageError: an unknown sampling, or PyAV is not installed.
    """
    if sampling not in get_args(Sampling):
        raise UsageError(f"unknown sampling {sampling!r}; {choose(sampling, get_args(Sampling))}")
    if frames < 1:
        raise UsageError(f"a clip has at least one frame, not {frames}")
    timeline = _timeline(media, sampling, max_pixels, max_frames)
    wanted = wanted_times(timeline, frames, sampling)
    kept: list[np.ndarray] = []
    times: list[float] = []
    with opened_video(media, max_pixels) as (container, stream):
        size: tuple[int, int] | None = None
        for time, frame in _shown_at(
            decoded_frames(container, stream, media), wanted, media, timeline
        ):
            size = size or _shrunk(frame, smallest_side)
            kept.append(_to_rgb(frame, size))
            times.append(time)
    return Clip(np.stack(kept), np.array(times) - timeline.times[0])


def decode_video(media: Media, spec: dict[str, Any]) -> Clip:
    """Decode the frames that an encoder looks at, shrunk where they are far larger than it needs."""
    resize = spec["pixels"]["resize"]
    side = None if resize is None else MARGIN * int(np.max(resize))
    return open_video(media, spec["frames"], spec["sampling"], smallest_side=side)


def check_video(
    media: Media, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES
) -> None:
    """Decode a video to its end once, without keeping it, to check that `open_video` will work.

    Raises:
        SignalError: as `open_video` does.
    """
    timeline = _timeline(media, "uniform", max_pixels, max_frames)
    if timeline.seen:
        return
    with opened_video(media, max_pixels) as (container, stream):
        last = max((time for time, _ in decoded_frames(container, stream, media)), default=-np.inf)
        _refuse_unreached(last, media, timeline)


def blank_video(media: Media) -> Media:
    """Make a mid-grey video of the same size, with frames at the same times (to a millisecond)."""
    timeline = _timeline(media, "uniform", MAX_PIXELS, MAX_FRAMES)
    height, width = open_video(media, 1).frames.shape[1:3]
    return grey_video(width, height, timeline.times - timeline.times[0])


def grey_video(width: int, height: int, times: np.ndarray) -> Media:
    """Make a mid-grey video with a frame at each of the ``times`` (n,), in ascending seconds."""
    av = pyav()
    buffer = io.BytesIO()
    grey = np.full((height, width, 3), 128, np.uint8)
    # bitexact: no random identifiers, so that equal videos have equal bytes and one cache entry.
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=1000, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        stream.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Media("video", data=buffer.getvalue())


def amounts(media: Media) -> list[Amount]:
    """Return the amounts that a server limits: frame size, number of frames, and the time they take."""
    begin, end, frames = float("inf"), 0.0, 0
    with opened_video(media, MAX_PIXELS) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        for packet in within(media, container.demux(stream)):
            frames += packet.size > 0
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                begin = min(begin, float(stamp * packet.time_base))
                end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
    shown = max(end - begin, 0.0)
    return [
        Amount("video_pixels", width * height, f"{width} x {height} pixels", adds_up=False),
        Amount("video_seconds", shown, f"{shown:.1f} s"),
        Amount("video_frames", frames, f"{frames:,} frames"),
    ]


def first_picture(media: Media) -> bytes:
    """Return the first frame as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(open_video(media, 1).frames[0]).save(buffer, format="PNG")
    return buffer.getvalue()


# --- when frames are shown ----------------------------------------------------------------------


def _timeline(media: Media, sampling: Sampling, max_pixels: int, max_frames: int) -> Timeline:
    """Find the times of all frames, from the packets or, if necessary, by decoding."""
    with opened_video(media, max_pixels) as (container, stream):
        times = _packet_times(container, stream, media, max_frames)
    if times is None or sampling == "scene":
        with opened_video(media, max_pixels) as (container, stream):
            timeline = _looked_at(decoded_frames(container, stream, media))
    else:
        timeline = Timeline(times, np.zeros(len(times)), seen=False)
    if not len(timeline.times):
        raise SignalError(media, "a video without frames: remove the row")
    return timeline


def _looked_at(frames: Iterator[tuple[float, Any]]) -> Timeline:
    """Return the times of decoded frames, and each one's histogram distance from the previous one."""
    times: list[float] = []
    changes: list[float] = []
    before = None
    for time, frame in frames:
        now = luma_histogram(
            frame.to_ndarray(format="gray", width=THUMBNAIL, height=THUMBNAIL, interpolation="AREA")
        )
        changes.append(0.0 if before is None else change(before, now))
        times.append(time)
        before = now
    ascending = np.maximum.accumulate(np.array(times))  # timestamps of damaged files may jump back
    return Timeline(ascending, np.array(changes), seen=True)


def _packet_times(container: Any, stream: Any, media: Media, max_frames: int) -> np.ndarray | None:
    """Return (n,) ascending frame times in seconds, or None if packets have none."""
    ticks: list[int | None] = []
    begin, end = np.inf, -np.inf
    for packet in within(media, container.demux()):
        if not packet.size:
            continue
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            begin = min(begin, float(stamp * packet.time_base))
            end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and not packet.is_discard:
            ticks.append(packet.pts)
        if len(ticks) > max_frames:
            raise SignalError(
                media,
                f"more than {max_frames:,} frames: cut it into shorter clips, or raise max_frames",
            )
    known = sorted({tick for tick in ticks if tick is not None})
    times = np.array([float(tick * stream.time_base) for tick in known])
    if ticks:  # not every container has the last frame's duration: assume it equals the others
        longest = float(np.diff(times).max(initial=0.0))
        # A header's duration begins at 0, also where the first frame is shown later.
        _refuse_cut_off(container.duration, end - min(begin, 0.0), longest, media)
    return times if len(known) == len(ticks) else None


def _refuse_cut_off(promised: int | None, found: float, longest: float, media: Media) -> None:
    """Refuse a file whose packets end well before the header's duration (microseconds)."""
    said = (promised or 0) / 1e6
    if 0 <= found + longest < (1 - MISSING) * said - 0.1:
        raise SignalError(
            media,
            f"ends after {found:.2f} s, but its header says {said:.2f} s: it is truncated (copy it again) "
            "or its header is wrong (rewrite it: ffmpeg -i FILE -c copy NEW)",
        )


def _refuse_unreached(last: float, media: Media, timeline: Timeline) -> None:
    if last < timeline.reached:
        raise SignalError(
            media,
            f"{max(last - timeline.times[0], 0):.2f} s of {timeline.end - timeline.times[0]:.2f} s "
            "can be decoded: truncated or damaged; copy it again",
        )


def _shown_at(
    frames: Iterator[tuple[float, Any]], wanted: np.ndarray, media: Media, timeline: Timeline
) -> Iterator[tuple[float, Any]]:
    """Yield the frame for each wanted time, or the next decodable one."""
    place, time = 0, -np.inf
    for time, frame in frames:
        if time >= wanted[place]:
            yield time, frame
            place = int(np.searchsorted(wanted, time, side="right"))
            if place == len(wanted):
                return
    _refuse_unreached(time, media, timeline)
    if not place:
        raise SignalError(media, "no frame can be decoded: copy it again")


# --- pixels -------------------------------------------------------------------------------------


def _shrunk(frame: Any, smallest_side: int | None) -> tuple[int, int]:
    factor = max(min(frame.width, frame.height) // smallest_side, 1) if smallest_side else 1
    return frame.width // factor, frame.height // factor


def _to_rgb(frame: Any, size: tuple[int, int]) -> np.ndarray:
    form = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
    pixels = frame.to_ndarray(format=form, width=size[0], height=size[1], interpolation="AREA")
    if form == "rgba":
        colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
        pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(_upright(pixels, frame))


def _upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """(H, W, 3) turned and mirrored as the frame's display matrix says, by the nearest of the eight ways.

    The matrix takes a point (x, y) to (a x + c y, b x + d y); its nine numbers are a b u, c d v, x y w.
    """
    side = pyav().sidedata.sidedata.Type.DISPLAYMATRIX
    matrix = frame.side_data.get(side)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5].astype(int)
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


VIDEO = Modality(
    name="video",
    words="a video",
    check=check_video,
    blank=blank_video,
    encoder="modalign.encoders.video",
    loader="modalign.models.encoders.video",
    endings=(".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v"),
    amounts=amounts,
    decode=decode_video,
    picture=first_picture,
    chat_part='{"type": "video", "video": frames}',
    chat_note="frames: (F, H, W, 3) uint8",
)
