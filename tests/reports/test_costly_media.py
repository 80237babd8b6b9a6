"""Media that cost far more than their size: refused by their headers, else ended by a limit of the process.

Four progressive JPEGs with hundreds of scans blocked everyone for 32 s, a TIFF of 100 x 100
with one huge tile allocated 1 GiB, FLAC silence of 349 kB became 1.2 GB, and a video of many frames held a worker.
"""

from __future__ import annotations

import base64
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

import tiny
from modalign.data.audio import open_audio
from modalign.data.images import check_image, open_image
from modalign.data.modalities import Amount
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.video import amounts, grey_video
from modalign.serving.decoding import Decoders, DecodingLimits, UndecodedError, memory_for
from reports.threads import reported, tried
from serving.fake_engine import FakeEngine, served

MEGABYTE = 2**20


def progressive(side: int, scans: int) -> bytes:
    """A JPEG whose last scan is there so many times."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + content[-2:]


def tiled(side: int, tile: int) -> bytes:
    """A TIFF (6.0, section 15) of one compressed tile."""
    data = zlib.compress(bytes(1000))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    begin = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {324: begin, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 32 x 32 with further chunks behind its header."""
    content = tiny.png_bytes(0)
    more = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return content[:33] + more + content[33:]


def image(content: bytes) -> Media:
    return Media("image", data=content)


# --- by their headers, in every verb ------------------------------------------------------------


@reported(
    "libjpeg-turbo/libjpeg-turbo#284", "NVIDIA/DALI#5316", "xarray-contrib/xarray-spatial#1215"
)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (progressive(64, 300), "progressive JPEG of 31"),
        (tiled(100, 32_768), "tiles of 32768 x 32768"),
        (tiled(100, 2**31), "tiles of 2147483648 x 2147483648"),
        (png((b"zTXt", b"x\0\0" + zlib.compress(bytes(20 * MEGABYTE), 9))), "too large"),
        (png((b"iCCP", b"x\0\0" + zlib.compress(bytes(20 * MEGABYTE), 9))), "too large"),
    ],
    ids=["scans", "tile", "larger tile", "text", "profile"],
)
def test_pictures(content: bytes, said: str) -> None:
    assert len(content) < MEGABYTE
    for use in (open_image, check_image):
        with pytest.raises(SignalError, match=said):
            use(image(content))


@reported("NVIDIA/DALI#5316")
def test_ordinary_ones_stay() -> None:
    check_image(image(progressive(64, 20)))
    file = io.BytesIO()
    Image.new("L", (100, 60)).save(file, "TIFF", tile=(128, 128))
    check_image(image(file.getvalue()))
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", comment=b"\xff\xda" * 200)
    check_image(image(file.getvalue()))


@reported("ietf-wg-cellar/flac-specification#167")
def test_a_recording_of_a_high_rate_is_small_in_memory() -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 384_000, 1, "PCM_16", format="FLAC") as recording:
        for _ in range(30):
            recording.write(np.zeros(384_000, np.int16))
    assert len(file.getvalue()) < MEGABYTE / 2
    samples = open_audio(Media("audio", data=file.getvalue()), 8_000)
    assert samples.shape == (240_000,)


@reported("vllm-project/vllm#57525")
def test_frames_are_counted() -> None:
    pytest.importorskip("av")
    media = grey_video(16, 16, np.arange(50) / 500)
    assert {amount.limit: amount.value for amount in amounts(media)}["video_frames"] == 50


# --- by the process's limits --------------------------------------------------------------------


def nothing(_: list[list[Amount]]) -> float:
    return 0.0


@pytest.fixture(scope="module")
def decoders() -> Iterator[Callable[..., Decoders]]:
    made: list[Decoders] = []

    def make(seconds: float = 30.0, memory: int = memory_for(64_000_000)) -> Decoders:
        made.append(Decoders(DecodingLimits(seconds, memory)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@tried("the same media with and without a process of their own")
def test_signals_are_those_that_the_loader_decodes(decoders: Callable[..., Decoders]) -> None:
    from modalign.models.encoders.loading import decode_medium

    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    tone = np.sin(np.arange(11_025) / 9) / 2
    soundfile.write(file, tone, 11_025, format="WAV")
    media = [
        tiny.image(3),
        Media("audio", data=file.getvalue()),
        grey_video(32, 16, np.arange(5) / 5),
    ]
    specs: dict[str, Any] = {
        "image": {},
        "audio": {"longer": "refuse", "rate": 8_000, "max_seconds": 2.0},
        "video": {"pixels": {"resize": None}, "frames": 3, "sampling": "uniform"},
    }
    with decoders().decoded(media, specs, nothing, "somebody") as signals:
        for medium, signal in zip(media, signals, strict=True):
            expected = decode_medium(medium, specs[medium.modality])
            expected = getattr(expected, "frames", expected)
            np.testing.assert_array_equal(np.asarray(signal), np.asarray(expected))
    with decoders().decoded(media, {}, nothing, "somebody") as signals:
        assert signals == [None] * 3  # looked at only


@reported("vllm-project/vllm#57525")
def test_a_medium_that_takes_too_long_is_named_and_others_go_on(
    decoders: Callable[..., Decoders],
) -> None:
    short = decoders(seconds=0.5)
    slow = image(progressive(4000, 80))
    with (
        pytest.raises(UndecodedError, match=r"not decoded within 0\.5 s") as caught,
        short.decoded([tiny.image(0), slow], {"image": {}}, nothing, "a"),
    ):
        pass
    assert caught.value.at == 1
    patient = decoders()
    with patient.decoded([tiny.image(0)], {"image": {}}, nothing, "b") as signals:
        assert signals[0].size == (tiny.SIDE, tiny.SIDE)


@reported("python-pillow/Pillow#515", "ietf-wg-cellar/flac-specification#167")
def test_memory_is_limited(decoders: Callable[..., Decoders]) -> None:
    small = decoders(memory=64 * MEGABYTE)
    file = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(file, "PNG")
    with (
        pytest.raises(UndecodedError, match=r"memory|decoder ended"),
        small.decoded([image(file.getvalue())], {"image": {}}, nothing, "a"),
    ):
        pass
    with small.decoded([tiny.image(0)], {"image": {}}, nothing, "a") as signals:
        assert signals[0].mode == "RGB"


@tried("a server with a slow medium and quick ones beside it")
def test_quick_work_never_waits_for_slow_work(decoders: Callable[..., Decoders]) -> None:
    """Requests that need much have one place, which somebody has: others are served meanwhile."""
    shared = decoders()
    over: list[str] = []

    def work(name: str) -> None:
        share = float(name == "slow")
        with shared.decoded([tiny.image(0)], {"image": {}}, lambda _: share, "the same client"):
            over.append(name)

    taken = shared._slow.take("another", 0, 10)
    threads = [threading.Thread(target=work, args=("slow",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        work("quick")
    assert over == ["quick"] * 5
    shared._slow.give_back(taken)
    for thread in threads:
        thread.join(60)
    assert over[5:] == ["slow"] * 3


@reported("vllm-project/vllm#57525", "libjpeg-turbo/libjpeg-turbo#284")
def test_requests() -> None:
    """Over HTTP, each is refused with its place, and the next one is answered."""

    def part(content: bytes) -> dict[str, Any]:
        url = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    with served(FakeEngine()) as server:
        for content, said in (
            (progressive(64, 300), "scans"),
            (tiled(100, 32_768), "tiles of 32768 x 32768 pixels"),
            (tiny.png_bytes(0), ""),
        ):
            answer = httpx2.post(
                f"{server.url}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": [part(content)]}]},
                timeout=60,
            )
            assert answer.status_code == (400 if said else 200), answer.text
            if said:
                assert said in answer.json()["error"]["message"]
                assert answer.json()["error"]["param"] == "messages[0].content[0].image_url.url"
