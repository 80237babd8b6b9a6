"""Media over a limit, too much at once, and clients that leave."""

from __future__ import annotations

import base64
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest

import tiny
from modalign.data.video import grey_video
from modalign.serving.http.app import Service
from serving.fake_engine import FakeEngine, Served, served
from serving.raw_http import SETTINGS, post, problem
from serving.signals import wav_bytes


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine(), SETTINGS) as running:
        yield running


# --- media --------------------------------------------------------------------------------------


def url_of(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def refused(server: Served, *parts: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "?"}, *parts]
    return problem(post(server, {"messages": [{"role": "user", "content": content}]}), 400)


PNG = tiny.png_bytes(0)  # 32 x 32
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"data:image/png;base64,{BASE64[:-1]}", "base64"),
        (f"data:image/png;base64,{BASE64[:40]}\n{BASE64[40:]}", "base64"),
        (f"data:image/png;base64, {BASE64}", "base64"),
        (f"data:image/png;base64,{BASE64}====", "base64"),
        (f"data:image/png;base64,{BASE64[:-4]}é===", "base64"),
        ("data:image/png;base64,", "empty"),
        (f"data:image/png,{BASE64}", "of the form"),
        ("data:image/png;base64", "of the form"),
        (f"data:text/html;base64,{BASE64}", "text/html is not of type image"),
        (f"data:audio/wav;base64,{BASE64}", "not of type image"),
        ("data:image/png;base64,SGVsbG8=", "not a known image format"),
        (BASE64, "only data URLs"),
        ("file:///etc/passwd", "only data URLs"),
        ("/etc/passwd", "only data URLs"),
        ("ftp://example.org/a.png", "only data URLs"),
        ("https://example.org/a.png", "not among the hosts"),
        ("HTTP://127.0.0.1/a.png", "not among the hosts"),
        ("", "only data URLs"),
    ],
)
def test_urls_that_are_not_read(server: Served, url: str, said: str) -> None:
    error = refused(server, image(url))
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert said in error["message"]


def test_media_types_that_are_read(server: Served) -> None:
    for head in (
        "data:image/png",
        "DATA:image/PNG;charset=x",
        "data:",
        "data:application/octet-stream",
    ):
        content = [image(f"{head};base64,{BASE64}")]
        response = post(server, {"messages": [{"role": "user", "content": content}]})
        assert response.status_code == 200, response.text


def test_an_image_over_the_limit_is_refused_by_its_header(server: Served) -> None:
    assert (
        "33 x 33 pixels"
        in refused(server, image(url_of("image/png", tiny.png_bytes(0, 33))))["message"]
    )
    # A header alone, of 50,000 x 50,000 pixels: nothing is decoded.
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + PNG[24:29]
    bomb = PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]
    assert "pixels" in refused(server, image(url_of("image/png", bomb)))["message"]


def test_a_recording_over_the_limit(server: Served) -> None:
    sound = base64.b64encode(wav_bytes(1.5, 8000)).decode()
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    error = refused(server, part)
    assert error["param"] == "messages[0].content[1].input_audio.data"
    assert "its 1.5 s the request has more audio than this server's 1 s" in error["message"]
    broken = {"type": "input_audio", "input_audio": {"data": "SGVsbG8=", "format": "wav"}}
    assert refused(server, broken)["code"] == "invalid_media"


@pytest.mark.parametrize(
    ("side", "times", "said"),
    [(16, [0.0, 1.5], "more video than this server's 1 s"), (80, [0.0], "80 x 80")],
)
def test_a_video_over_the_limit(server: Served, side: int, times: list[float], said: str) -> None:
    content = grey_video(side, side, np.array(times)).read()
    part = {"type": "video_url", "video_url": {"url": url_of("video/mp4", content)}}
    assert said in refused(server, part)["message"]


def test_limits_hold_for_all_media_of_a_request_together(server: Served) -> None:
    half = image(url_of("image/png", tiny.png_bytes(0, 23)))  # 529 of 1024 pixels
    assert refused(server, half, half)["param"] == "messages[0].content[2].image_url.url"
    sound = base64.b64encode(wav_bytes(0.6, 8000)).decode()
    part = {"type": "input_audio", "input_audio": {"data": sound}}
    assert refused(server, part, part)["param"] == "messages[0].content[2].input_audio.data"
    for _ in range(2):  # a request at a time
        content = [half, part]
        response = post(server, {"messages": [{"role": "user", "content": content}]})
        assert response.status_code == 200


def test_too_many_media(server: Served) -> None:
    part = image(f"data:image/png;base64,{BASE64}")
    series = {"type": "series", "series": [1.0]}
    error = refused(server, part, *[series] * 3)
    assert error["param"] == "messages[0].content[4].series"
    assert "3 media" in error["message"]


# --- too much at once, and clients that leave ---------------------------------------------------


def test_a_full_queue_says_when_to_come_again() -> None:
    engine = FakeEngine(max_batch=1, max_waiting=0, steps=1)
    with served(engine, SETTINGS) as server:
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=streamed()) as first:
            chunks = first.iter_bytes()
            next(chunks)
            response = post(server, {"prompt": "b"}, "completions")
            assert problem(response, 429)["code"] == "queue_full"
            assert response.headers["retry-after"] == "3"  # 2.5, rounded up
            # A request whose second prompt finds no place has its first one taken back.
            assert post(server, {"prompt": ["a", "b"]}, "completions").status_code == 429
            engine.allow(None)
            assert b"[DONE]" in b"".join(chunks)
        assert post(server, {"prompt": "b"}, "completions").status_code == 200


def streamed() -> dict[str, Any]:
    return {"prompt": "a", "stream": True}


def test_too_many_requests_at_a_time() -> None:
    engine = FakeEngine(steps=1)
    with served(engine, replace(SETTINGS, requests=1)) as server:
        with httpx2.stream("POST", f"{server.url}/v1/completions", json=streamed()) as first:
            chunks = first.iter_bytes()
            next(chunks)
            response = post(server, {"prompt": "b"}, "completions")
            assert problem(response, 429)["code"] == "too_many_requests"
            assert response.headers["retry-after"] == "1"
            engine.allow(None)
            list(chunks)
        assert post(server, {"prompt": "b"}, "completions").status_code == 200
        assert post(server, {"prompt": 5}, "completions").status_code == 400
        assert server.service.serving == 0  # refused ones leave no trace
    assert {row.client for row in engine.submitted} == {"127.0.0.1"}  # whose turns they are


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_places(stream: bool) -> None:
    engine = FakeEngine(max_batch=2, steps=1)
    body = json.dumps({"prompt": ["a", "b", "c"], "stream": stream}).encode()
    with served(engine, SETTINGS) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        connection = socket.create_connection((host, int(port)))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        )
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        engine.wait_for(lambda: len(engine.submitted) == 3 and len(engine.running) == 2)
        assert not any(row.cancelled for row in engine.submitted)
        connection.close()
        engine.wait_for(lambda: all(row.cancelled for row in engine.submitted))
        engine.wait_for(lambda: not engine.running and not engine.waiting)
    text = server.service.metrics.text().decode()
    assert 'modalign_requests_total{route="/v1/completions",status="499"} 1.0' in text
    assert server.service.serving == 0


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffers fill, and it does not hold a place for ever."""
    given_up, left = threading.Event(), Service._left
    monkeypatch.setattr(Service, "_left", lambda *given: (left(*given), given_up.set()))
    piece = 100_000 * "x"
    engine = FakeEngine(lambda *_: [piece] * 400)
    with served(engine, replace(SETTINGS, stalled_seconds=0.2)) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 400}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            engine.wait_for(lambda: len(engine.submitted) == 1)
            assert given_up.wait(10)
            assert server.service.serving == 0
