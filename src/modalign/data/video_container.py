"""Open a video file with PyAV: its container and video stream, with clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

from modalign.data.patience import within
from modalign.data.records import Media
from modalign.data.signals import MAX_STREAMS, SignalError, beginning, opened, refuse_thin
from modalign.errors import UsageError, extra

# Only containers: no playlists or file lists, with which FFmpeg would open other files or addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,apng,ivf,"
    "h264,hevc,m4v,mjpeg,yuv4mpegpipe,nut"
)


def pyav() -> Any:
    """Import PyAV.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise UsageError(
            f"videos are decoded by PyAV, which is not installed: {extra('video')}"
        ) from None
    return av


@contextmanager
def opened_video(media: Media, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Open the container and its video stream; FFmpeg's errors become SignalErrors."""
    av = pyav()
    with opened(media) as file:
        try:
            options = {"format_whitelist": FORMATS, "max_streams": str(MAX_STREAMS)}
            container = av.open(file, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise SignalError(media, _what_instead(file, error)) from None
        with container:
            stream = _video_stream(container, media)
            _refuse_too_large(stream.codec_context, media, max_pixels)
            try:
                yield container, stream
            except (av.FFmpegError, ValueError) as error:
                raise SignalError(
                    media, f"damaged video ({_brief(error)}): copy it again"
                ) from None


def _what_instead(file: BinaryIO, error: Exception) -> str:
    shown = beginning(file)
    if shown is None:
        return "the file is empty: copy it again"
    return (
        f"cannot be opened as a video ({_brief(error)}){shown}: truncated, damaged, or of another "
        "format; copy it again or save it as MP4"
    )


def _brief(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: Any, media: Media) -> Any:
    cover = pyav().stream.Disposition.attached_pic  # a cover picture in an audio file
    stream = container.streams.best("video")
    if stream is None or stream.disposition & cover:
        kinds = sorted({other.type for other in container.streams if other is not stream})
        holds = ", ".join(kinds) or "nothing"
        raise SignalError(media, f"has no video stream: holds {holds}")
    if stream.codec_context is None:
        raise SignalError(media, "damaged video (of an unknown codec): copy it anew")
    return stream


def _refuse_too_large(codec: Any, media: Media, max_pixels: int) -> None:
    refuse_thin(media, codec.width, codec.height)
    codec.options = {"max_pixels": str(max_pixels)}  # headers may be wrong
    if codec.width * codec.height > max_pixels:
        raise SignalError(
            media,
            f"frames of {codec.width} x {codec.height} = {codec.width * codec.height:,} pixels, more "
            f"than the limit of {max_pixels:,}: shrink it, or raise max_pixels",
        )


def decoded_frames(container: Any, stream: Any, media: Media) -> Iterator[tuple[float, Any]]:
    """Every frame with its time; without timestamps, frames are counted at the stream's rate.

    Raises:
        ValueError: the decoder marks a frame as damaged.
        SignalError: it takes too long.
    """
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    for index, frame in enumerate(within(media, container.decode(stream))):
        time = index / rate if frame.pts is None else frame.pts * frame.time_base
        if frame.is_corrupt:
            raise ValueError(f"frame {index} at {float(time):.2f} s")
        yield float(time), frame
