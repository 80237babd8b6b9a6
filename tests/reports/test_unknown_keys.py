"""Keys that nothing reads: in turns, in parts, in mappings of media, in messages to the server.

``images``, ``weight``, ``loss``, ``tool_calls`` and ``reasoning_content`` inside a turn, and
``contents`` and ``detail`` inside messages sent to the server, vanished without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tiny
from modalign.data.readers import read_records
from reports.threads import reported
from serving.fake_engine import FakeEngine, Served, served

ANSWER = {"role": "assistant", "content": "a"}


def problem(path: Path, row: dict[str, Any]) -> str:
    """What is said about a row; empty where it is read."""
    found = read_records(tiny.write_jsonl(path / "data.jsonl", [row]))
    return found.problems[0].message if found.problems else ""


@reported("fw-ai/cookbook#387")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", ["a.png"]),
        ("weight", 0),
        ("loss", False),
        ("tool_calls", [{"type": "function"}]),
        ("reasoning_content", "first, ..."),
        ("contents", "more"),
    ],
)
def test_keys_of_a_turn_are_named(tmp_path: Path, key: str, value: Any) -> None:
    turns = [{"role": "user", "content": "q"}, {**ANSWER, key: value}]
    assert f"a turn of messages holds {key!r}" in problem(tmp_path, {"messages": turns})
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", key: value}]
    assert f"a turn of conversations holds {key!r}" in problem(tmp_path, {"conversations": turns})


@reported("modelship-ai/modelship#136")
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "text", "text": "q", "cache": 1}, "a text part holds 'cache'"),
        ({"type": "image", "path": "a.png", "crop": [0, 1]}, "an image part holds 'crop'"),
        ({"type": "image", "image": {"path": "a.png", "page": 2}}, "the image holds 'page'"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "holds 'detail'"),
    ],
)
def test_keys_of_a_part_are_named(tmp_path: Path, part: dict[str, Any], said: str) -> None:
    assert said in problem(tmp_path, {"messages": [{"role": "user", "content": [part]}, ANSWER]})


@reported("langchain-ai/langchain#37187")
def test_what_is_empty_or_asks_for_nothing_passes(tmp_path: Path) -> None:
    url = {"url": "a.png", "detail": "auto"}
    parts = [{"type": "image_url", "image_url": url, "text": None}, {"type": "text", "text": "q"}]
    turns = [{"role": "user", "content": parts, "tool_calls": []}, {**ANSWER, "weight": 1}]
    assert problem(tmp_path, {"messages": turns}) == ""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine(modalities=("image",))) as found:
        yield found


@reported("byte5ai/omadia#1109", "microsoft/agent-framework#4756")
@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "q", "contents": "more"}, "messages[0].contents"),
        (
            {"role": "user", "content": [{"type": "text", "text": "q", "texts": "r"}]},
            "messages[0].content[0].texts",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:,", "detail": "bogus"}}
                ],
            },
            "messages[0].content[0].image_url.detail",
        ),
    ],
)
def test_keys_of_messages_to_the_server_are_named(
    server: Served, message: dict[str, Any], param: str
) -> None:
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": [message]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@reported("langchain-ai/langchain#37187")
def test_an_answer_can_be_sent_back_as_it_came(server: Served) -> None:
    said = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}
    turns = [{"role": "user", "content": "q"}, said, {"role": "user", "content": "r"}]
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": turns})
    assert answer.status_code == 200, answer.text
