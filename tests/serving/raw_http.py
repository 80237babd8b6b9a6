"""Requests as they are, to a server with small limits."""

from __future__ import annotations

import socket
from typing import Any

import httpx2

from modalign.serving.http.server import accepted_hosts
from modalign.serving.http.settings import MediaLimits, Settings
from serving.fake_engine import Served

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
LIMITS = MediaLimits(
    count=3, image_pixels=32 * 32, audio_seconds=1.0, video_seconds=1.0, video_pixels=64 * 64
)
SETTINGS = Settings(
    "tiny",
    hosts=accepted_hosts("127.0.0.1"),
    body_bytes=100_000,
    body_seconds=0.3,
    media=LIMITS,
)
JSON = {"Content-Type": "application/json"}


def post(server: Served, body: Any, path: str = "chat/completions", **options: Any) -> Any:
    return httpx2.post(f"{server.url}/v1/{path}", json=body, **options)


def problem(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def raw(server: Served, *pieces: bytes) -> bytes:
    """The answer to bytes that are sent as they are."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
            if b"\r\n\r\n" in answer and b'"code":' in answer:
                break
    return answer
