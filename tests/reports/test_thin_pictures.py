"""Pictures that are small as they are and huge once a processor has resized their shorter side.

A PNG of 1 x 20,000 (162 bytes) took 10 GB and 36 s, and ended ``ask`` and ``train`` in a
MemoryError.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

import tiny
from modalign.data.images import check_image, open_image
from modalign.data.readers import read_records
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.validation import BrokenData, validate
from modalign.data.video import check_video, grey_video, open_video
from reports.threads import reported
from serving.fake_engine import FakeEngine, served

THIN = [(1, 20_000), (20_000, 1), (2, 400)]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@reported("image-rs/image#3083", "nagadomi/nunif#256")
@pytest.mark.parametrize(("width", "height"), THIN)
def test_images(tmp_path: Path, width: int, height: int) -> None:
    media = Media("image", data=png(width, height))
    for use in (open_image, check_image):
        with pytest.raises(SignalError, match=f"{width} x {height} pixels: one side") as caught:
            use(media)
        assert caught.value.kind == "image-too-large"
    (tmp_path / "thin.png").write_bytes(png(width, height))
    rows = [{"image": "thin.png", "question": "q", "answer": "a"}]
    with pytest.raises(BrokenData, match=r"data\.jsonl:1: image .*one side"):
        validate(read_records(tiny.write_jsonl(tmp_path / "data.jsonl", rows)))


@reported("nagadomi/nunif#256")
def test_a_strip_that_processors_can_take_stays() -> None:
    assert open_image(Media("image", data=png(4, 400))).size == (4, 400)


@reported("nagadomi/nunif#256")
def test_videos() -> None:
    pytest.importorskip("av")
    media = grey_video(1_010, 10, np.arange(2) / 5)
    for use in (check_video, lambda media: open_video(media, 1)):
        with pytest.raises(SignalError, match="1010 x 10 pixels: one side"):
            use(media)


@reported("image-rs/image#3083")
@pytest.mark.parametrize("modality", ["image", "video"])
def test_requests(modality: str) -> None:
    content = png(1, 20_000)
    if modality == "video":
        pytest.importorskip("av")
        content = grey_video(1_010, 10, np.arange(2) / 5).read()
    data = base64.b64encode(content).decode()
    url = f"data:application/octet-stream;base64,{data}"
    part: dict[str, Any] = {"type": f"{modality}_url", f"{modality}_url": {"url": url}}
    with served(FakeEngine()) as server:
        answer = httpx2.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": [part]}]},
        )
    assert answer.status_code == 400
    assert "one side is more than 100 times the other" in answer.json()["error"]["message"]
