"""Opening videos: which frames, at which times, and every way in which a file can be wrong."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data import video
from modalign.data.frame_sampling import Timeline, wanted_times
from modalign.data.readers import read_records
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.validation import BrokenData, validate
from modalign.data.video import blank_video, check_video, grey_video, open_video
from modalign.errors import UsageError

av = pytest.importorskip("av")

CONTAINERS = [
    ("mp4", "mp4", "libx264", "yuv420p"),
    ("mkv", "matroska", "libx264", "yuv420p"),
    ("webm", "webm", "libvpx-vp9", "yuv420p"),
    ("avi", "avi", "mpeg4", "yuv420p"),
    ("ts", "mpegts", "libx264", "yuv420p"),
    ("gif", "gif", "gif", "rgb8"),
    ("apng", "apng", "apng", "rgb24"),
]


def levels(count: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """Frames (H, W, 3) of one grey each: frame i has the value 8 i, so that a frame tells its number."""
    return [np.full((*size, 3), 8 * i, np.uint8) for i in range(count)]


def encode(
    frames: Sequence[np.ndarray],
    container: str = "matroska",
    codec: str = "ffv1",
    pixels: str = "bgr0",
    *,
    times: list[int] | None = None,
    rate: int = 10,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    form: str = "rgb24",
) -> bytes:
    """A video file; ``times`` in ticks of 1/1000 s, else ``rate`` frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate if times is None else 1000)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixel in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixel, format=form)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def clip(data: bytes) -> Media:
    return Media("video", data=data)


def numbers(media: Media, frames: int, **options: Any) -> list[int]:
    """Which frames of a video of :func:`levels` are kept."""
    return [round(float(f.mean()) / 8) for f in open_video(media, frames, **options).frames]


def message(media: Media, **options: Any) -> str:
    """What opening and checking both say; they agree."""
    with pytest.raises(SignalError) as opened:
        open_video(media, 4, **options)
    with pytest.raises(SignalError) as checked:
        check_video(media, **options)
    assert opened.value.kind == checked.value.kind
    assert opened.value.reason == checked.value.reason
    assert media.label in str(opened.value)
    return f"{opened.value.kind}: {opened.value.reason}"


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "container", "codec", "pixels"), CONTAINERS)
def test_every_container(name: str, container: str, codec: str, pixels: str) -> None:
    media = clip(encode(levels(30), container, codec, pixels))
    check_video(media)
    opened = open_video(media, 4)
    # 3 s in four segments: centres 0.375, 1.125, 1.875, 2.625 s; shown there: frames 3, 11, 18, 26.
    np.testing.assert_allclose(opened.times, [0.3, 1.1, 1.8, 2.6], atol=0.02)
    assert opened.frames.dtype == np.uint8
    assert opened.frames.shape == (4, 32, 48, 3)
    tolerance = 36 if pixels == "rgb8" else 3  # rgb8 has four or eight levels a channel
    means = opened.frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [24, 88, 144, 208], atol=tolerance)


@given(st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_centres_of_equal_segments(count: int, frames: int) -> None:
    """At a constant rate frame i is shown from i to i + 1: floor((k + 1/2) n / F)."""
    timeline = Timeline(np.arange(count) * 1.0, np.zeros(count), seen=True)
    wanted = wanted_times(timeline, frames, "uniform")
    expected = [int((k + Fraction(1, 2)) * Fraction(count, frames)) for k in range(frames)]
    assert wanted.tolist() == (sorted(set(expected)) if count > frames else list(range(count)))
    assert len(wanted) == min(count, frames)


def test_times_count_and_not_the_frames_number() -> None:
    """Twenty frames in the first second, two more in the next three: time is what is divided."""
    times = [50 * i for i in range(20)] + [1000, 3950]
    media = clip(encode(levels(22), times=times))
    # Ends at 4.0 s; centres 0.5, 1.5, 2.5, 3.5: frame 10, then frame 20 three times, taken once.
    assert numbers(media, 4) == [10, 20]
    assert open_video(media, 4).times.tolist() == [0.5, 1.0]


def test_a_short_video_gives_what_it_has() -> None:
    media = clip(encode(levels(3)))
    assert numbers(media, 8) == [0, 1, 2]
    assert numbers(media, 8, sampling="scene") == [0, 1, 2]
    assert numbers(clip(encode(levels(1))), 1) == [0]


def test_times_start_at_the_first_frame() -> None:
    """A transport stream starts wherever its clock stood."""
    opened = open_video(clip(encode(levels(5), "mpegts", "libx264", "yuv420p")), 5)
    np.testing.assert_allclose(opened.times, [0, 0.1, 0.2, 0.3, 0.4], atol=1e-3)


def test_a_stream_without_timestamps_is_counted_at_its_rate() -> None:
    media = clip(encode(levels(30), "h264", "libx264", "yuv420p"))
    check_video(media)
    assert numbers(media, 4) == [3, 11, 18, 26]


# --- scenes -------------------------------------------------------------------------------------


def scenes(*lengths: int) -> list[np.ndarray]:
    """Scenes of plain colours whose luma lies in different bins."""
    return [
        np.full((32, 48, 3), 40 + 60 * i, np.uint8) for i, n in enumerate(lengths) for _ in range(n)
    ]


def test_scene_sampling_takes_a_frame_of_every_scene() -> None:
    media = clip(encode(scenes(20, 2, 3, 15)))
    uniform = open_video(media, 4)
    found = open_video(media, 4, "scene")
    assert len({int(f.mean()) for f in uniform.frames}) == 2  # centres miss the two short scenes
    assert [round(float(f.mean())) for f in found.frames] == [40, 100, 160, 220]
    np.testing.assert_allclose(found.times, [1.0, 2.1, 2.3, 3.2], atol=1e-6)  # centres of scenes


def test_more_frames_than_scenes_go_where_time_is_longest() -> None:
    """Scenes of 20 and 10 frames share three frames 2 : 1, and six 4 : 2."""
    media = clip(encode(scenes(20, 10)))
    assert open_video(media, 3, "scene").times.tolist() == [0.5, 1.5, 2.5]
    assert [round(float(f.mean())) for f in open_video(media, 6, "scene").frames] == [40] * 4 + [
        100
    ] * 2


def test_more_scenes_than_frames_keep_the_largest_changes() -> None:
    half = np.full((32, 48, 3), 40, np.uint8)
    half[:16] = 200  # half of the luma differs from the plain scene's: 0.5
    plain, other = np.full_like(half, 40), np.full_like(half, 90)
    media = clip(encode([plain] * 5 + [half] * 5 + [other] * 10))
    # Two frames, one cut: at frame 10, where everything changes; centres 0.5 and 1.5 s.
    assert open_video(media, 2, "scene").times.tolist() == [0.5, 1.5]


def test_without_a_change_of_scene_the_sampling_is_uniform() -> None:
    frames = levels(1) * 30
    media = clip(encode(frames))
    assert np.array_equal(open_video(media, 5, "scene").times, open_video(media, 5).times)


def test_histograms_know_where() -> None:
    """Luma that moves from the left half to the right changes no global histogram, but ours."""
    left = np.zeros((32, 48, 3), np.uint8)
    left[:, :24] = 250
    media = clip(encode([left] * 10 + [left[:, ::-1].copy()] * 10))
    assert open_video(media, 2, "scene").times.tolist() == [0.5, 1.5]


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_frames_are_turned_upright(rotation: int) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:16, :24] = 255  # the top left is white
    data = encode([frame] * 3, "mp4", "libx264", "yuv420p", rotation=rotation)
    opened = open_video(clip(data), 1).frames[0]
    expected = np.rot90(frame, rotation // 90)  # the matrix rotates counterclockwise
    assert opened.shape == expected.shape
    assert np.abs(opened.astype(int) - expected).mean() < 4


def test_transparency_lies_over_white() -> None:
    frame = np.zeros((8, 8, 4), np.uint8)
    frame[..., 0] = 200
    frame[:4, :, 3], frame[4:, :, 3] = 255, 51  # opaque, and a fifth
    data = encode([frame], "matroska", "ffv1", "bgra", form="rgba")
    opened = open_video(clip(data), 1).frames[0]
    assert opened[0, 0].tolist() == [200, 0, 0]
    assert opened[7, 7].tolist() == [244, 204, 204]  # 0.2 * colour + 0.8 * 255


def test_frames_are_shrunk_by_a_whole_factor() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
    media = clip(encode([frame]))
    assert open_video(media, 1, smallest_side=41).frames.shape[1:3] == (40, 64)
    small = open_video(media, 1, smallest_side=20).frames[0]
    boxes = frame.reshape(20, 2, 32, 2, 3).mean(axis=(1, 3))
    assert small.shape == (20, 32, 3)
    assert np.abs(small - boxes).max() <= 2
    assert open_video(media, 1, smallest_side=13).frames.shape[1:3] == (13, 21)


# --- bad input ----------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    media = Media("video", path=str(tmp_path / "none.mp4"))
    assert message(media).startswith("missing-media: the file does not exist")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"<html>404 not found</html>", "starts with the text '<html>404 not found</html>'"),
        (b"\x00\x01\x02" * 50, "cannot be opened as a video"),
    ],
)
def test_no_video(data: bytes, said: str) -> None:
    assert said in message(clip(data))


def test_sound_alone() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "has no video stream: holds audio" in message(clip(buffer.getvalue()))


def test_a_cover_picture_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(levels(1, (16, 16))[0], format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "has no video stream: holds nothing" in message(clip(buffer.getvalue()))


@pytest.mark.parametrize("sound", [False, True])
def test_without_frames(sound: bool) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska" if sound else "avi") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        if sound:
            audio = output.add_stream("mp2", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            frame.sample_rate = 16000
            output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
        else:
            output.start_encoding()
    assert "a video without frames" in message(clip(buffer.getvalue()))


def test_the_last_frame_may_be_shown_long() -> None:
    """Slides of ten seconds: the header's thirty seconds are honest, the last packet says only when."""
    data = patched_duration(encode(levels(3), times=[0, 10_000, 20_000]), 30)
    check_video(clip(data))
    assert open_video(clip(data), 3).times.tolist() == [0, 10, 20]


def patched_duration(data: bytes, seconds: float) -> bytes:
    """A Matroska file with another duration in its header: EBML id 0x4489, 8 bytes, a float64 of ms."""
    place = data.index(b"\x44\x89\x88") + 3
    return data[:place] + struct.pack(">d", seconds * 1000) + data[place + 8 :]


def test_a_header_that_says_too_little_changes_nothing() -> None:
    honest = encode(levels(30))
    lying = patched_duration(honest, 0.5)
    with av.open(io.BytesIO(lying)) as container:
        assert container.duration == 500_000
    check_video(clip(lying))
    assert numbers(clip(lying), 4) == numbers(clip(honest), 4) == [3, 11, 18, 26]


def test_a_header_that_says_too_much_is_told() -> None:
    said = message(clip(patched_duration(encode(levels(30)), 60)))
    assert "ends after 3.00 s, but its header says 60.00 s" in said


def test_an_avi_header_with_another_number_of_frames() -> None:
    """The number stands in avih and in strh; sampling goes by the frames that are there."""
    data = bytearray(encode(levels(30), "avi", "mpeg4", "yuv420p"))
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = data.index(mark) + offset
        assert struct.unpack_from("<I", data, place) == (30,)
        struct.pack_into("<I", data, place, 7)
    media = clip(bytes(data))
    check_video(media)
    assert numbers(media, 4) == [3, 11, 18, 26]


@pytest.mark.parametrize(("name", "container", "codec", "pixels"), CONTAINERS[:3])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_cut_off(name: str, container: str, codec: str, pixels: str, share: float) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(30)]
    first = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else None
    data = encode(noise, container, codec, pixels, options=first)
    said = message(clip(data[: int(share * len(data))]))
    assert said.startswith("broken-media: ends after")
    assert "header says 3.00 s" in said


def test_an_index_that_is_cut_off() -> None:
    data = encode(levels(30), "mp4", "libx264", "yuv420p")  # its index stands at the end
    assert "truncated, damaged" in message(clip(data[: len(data) // 2]))


def test_damage_within() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(30)]
    data = bytearray(encode(noise, "mp4", "libx264", "yuv420p"))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(rng.integers(0, 256, 2000, dtype=np.uint8))
    assert "damaged video" in message(clip(bytes(data)))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_gives_frames_or_the_one_error(drawn: st.DataObject) -> None:
    name = drawn.draw(st.sampled_from(["mp4", "webm", "gif", "avi"]))
    data = bytearray(SMALL[name])
    for _ in range(drawn.draw(st.integers(1, 6))):
        data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))
    data = data[: drawn.draw(st.integers(0, len(data)))]
    media = clip(bytes(data))
    try:
        check_video(media)
    except SignalError:
        return
    assert 1 <= len(open_video(media, 3).frames) <= 3  # what is checked can be opened
    assert 1 <= len(open_video(media, 3, "scene").frames) <= 3


SMALL = {
    name: encode(levels(8, (16, 16)), container, codec, pixels)
    for name, container, codec, pixels in CONTAINERS
    if name in {"mp4", "webm", "gif", "avi"}
}


def test_limits_hold_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(video, "decoded_frames", never)
    media = clip(encode(levels(30)))
    assert "48 x 32 = 1,536 pixels, more than the limit of 1,000" in message(media, max_pixels=1000)
    assert "more than 20 frames" in message(media, max_frames=20)


def test_frames_that_grow_on_the_way() -> None:
    """The header knows the first size only: the decoder holds the limit, and one size is kept."""
    frames = [*levels(3, (32, 48)), *levels(3, (320, 320))]
    media = clip(b"".join(encode([f], "mjpeg", "mjpeg", "yuvj420p") for f in frames))
    assert open_video(media, 6).frames.shape == (6, 32, 48, 3)
    assert "damaged video" in message(media, max_pixels=5000)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n",
        "ffconcat version 1.0\nfile '/etc/passwd'\n",
    ],
)
def test_playlists_are_not_followed(text: str, tmp_path: Path) -> None:
    for name in ("list.m3u8", "list.txt", "list.mp4"):
        (tmp_path / name).write_text(text)
        assert "starts with the text" in message(Media("video", path=str(tmp_path / name)))


def test_memory_is_bounded_by_the_frames_kept() -> None:
    """Ten times the frames, the same peak (numpy tells tracemalloc of its arrays)."""

    def peak(count: int) -> int:
        media = clip(encode(levels(1, (240, 320)) * count))
        tracemalloc.start()
        open_video(media, 3, "scene")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(5)
    frame = 240 * 320 * 3
    assert peak(200) - peak(20) < frame


def test_options_that_make_no_sense() -> None:
    media = clip(SMALL["mp4"])
    with pytest.raises(UsageError, match="unknown sampling 'random'; choose from uniform, scene"):
        open_video(media, 3, "random")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one frame"):
        open_video(media, 0)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install '.\[video\]'"):
        check_video(clip(b"x"))


# --- blank --------------------------------------------------------------------------------------


def test_a_blank_video_has_the_same_size_and_times() -> None:
    times = [0, 40, 500, 1234]
    media = clip(encode(levels(4, (17, 23)), times=times))
    blank = blank_video(media)
    check_video(blank)
    opened = open_video(blank, 9)
    assert opened.frames.shape == (4, 17, 23, 3)
    assert (opened.frames == 128).all()
    np.testing.assert_allclose(opened.times, np.array(times) / 1000, atol=1e-9)


def test_a_blank_video_of_a_turned_one_is_upright() -> None:
    media = clip(encode(levels(3), "mp4", "libx264", "yuv420p", rotation=90))
    assert open_video(blank_video(media), 1).frames.shape == open_video(media, 1).frames.shape


def test_grey_video_is_deterministic() -> None:
    times = np.arange(3) / 10
    assert open_video(grey_video(10, 6, times), 3).frames.shape == (3, 6, 10, 3)
    assert grey_video(10, 6, times).data == grey_video(10, 6, times).data


# --- in a data file -----------------------------------------------------------------------------


def test_broken_videos_are_found_up_front_with_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(SMALL["mp4"])
    (tmp_path / "cut.mp4").write_bytes(SMALL["mp4"][:200])
    (tmp_path / "page.mp4").write_text("<html>gone</html>")
    rows = [
        {"video": name, "question": "what moves?", "answer": "it"}
        for name in ("good.mp4", "cut.mp4", "page.mp4", "none.mp4", "good.mp4")
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = read_records(file, modalities=("video",))
    with pytest.raises(BrokenData) as caught:
        validate(read)
    found = [(p.source.row, p.kind, p.message.split(": ", 1)[1]) for p in caught.value.problems]
    assert [row for row, _, _ in found] == [2, 3, 4]
    assert found[0][1] == found[1][1] == "broken-media"
    assert "starts with the text '<html>gone</html>'" in found[1][2]
    assert found[2][1:] == (
        "missing-media",
        "the file does not exist: put it there or correct the path",
    )
    kept, report = validate(read, skip_broken="60%")
    assert [record.source.row for record in kept] == [1, 5]
    assert report.dropped == 3
