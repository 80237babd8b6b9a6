"""/v1/transform before a scripted engine: through the server's own tool path, with its limits and its key."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from modalign.serving.http.server import accepted_hosts
from modalign.serving.http.settings import Settings
from modalign.tools.generators import Generator, Made, generators
from serving.fake_engine import FakeEngine, Served, served

KEY = "0123456789abcdef"
RED = '<tool_call>{"name": "picture", "arguments": {"prompt": "a red star"}}</tool_call>'


def _fail(prompt: str) -> Made:
    raise RuntimeError("out of tape")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, Served]]:
    engine = FakeEngine()
    known = (*generators(["picture", "sound"]), Generator("tape", _fail, "Fail."))
    settings = Settings("tiny", KEY, accepted_hosts("127.0.0.1"), generators=known)
    with served(engine, settings) as server:
        yield engine, server


def post(server: Served, key: str = KEY, **body: Any) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{server.url}/v1/transform", json=body, headers=headers, timeout=30)


def saying(engine: FakeEngine, *replies: str) -> list[Any]:
    """Let the engine give these replies in turn; returns the tools that it is offered."""
    left = list(replies)
    engine.tools.clear()
    engine.script = lambda *_: [left.pop(0)]
    return engine.tools


def test_calls_come_back_as_media(running: tuple[FakeEngine, Served]) -> None:
    engine, server = running
    offered = saying(engine, RED)
    found = post(server, instruction="a red star, please").json()
    (call,) = found["calls"]
    kind, _, data = call["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((64, 64)) == (255, 0, 0)
    assert (call["shows"], call["problem"], found["repaired"]) == ("a red star", None, False)
    assert [tool["function"]["name"] for tool in offered[0]] == ["picture", "sound", "tape"]


def test_text_comes_back_as_text(running: tuple[FakeEngine, Served]) -> None:
    engine, server = running
    saying(engine, "Shakespeare.")
    found = post(server, instruction="Who wrote Hamlet?", temperature=0, max_tokens=9).json()
    assert (found["text"], found["calls"]) == ("Shakespeare.", [])


def test_a_failing_generator_is_told_to_the_model_once(running: tuple[FakeEngine, Served]) -> None:
    engine, server = running
    failing = '<tool_call>{"name": "tape", "arguments": {"prompt": "x"}}</tool_call>'
    saying(engine, failing, RED)
    found = post(server, instruction="tape it").json()
    assert found.get("repaired"), found
    assert [call["shows"] for call in found["calls"]] == ["a red star"]
    saying(engine, failing, "<tool_call>{not json")
    found = post(server, instruction="tape it").json()
    assert [call["problem"] for call in found["calls"]] == ["the call is not JSON with a name"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"instruction": " "}, 400, "is empty"),
        ({}, 400, "instruction"),
        ({"instruction": "x", "stream": True}, 400, "one whole answer"),
        ({"instruction": "x", "sound": "loud"}, 400, "sound"),
        ({"instruction": "x", "model": "other"}, 404, "no model 'other'"),
    ],
)  # fmt: skip
def test_what_is_refused(
    running: tuple[FakeEngine, Served], body: dict[str, Any], status: int, words: str
) -> None:
    found = post(running[1], **body)
    assert found.status_code == status
    assert words in found.json()["error"]["message"]


def test_the_key_is_asked_for_and_the_route_is_there_only_with_generators(
    running: tuple[FakeEngine, Served],
) -> None:
    assert post(running[1], key="wrong", instruction="x").status_code == 401
    with served(FakeEngine()) as plain:
        assert post(plain, instruction="x").status_code == 404


def test_a_model_that_fails_is_an_error(running: tuple[FakeEngine, Served]) -> None:
    engine, server = running
    saying(engine, "ERROR")
    assert post(server, instruction="x").status_code == 502
