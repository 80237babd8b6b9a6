"""Media and tools in a chat: what reaches the engine, and what its text becomes."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from modalign.data.records import Media
from modalign.data.video import grey_video
from modalign.serving.http.calls import CallReader
from serving.by_openai import HELLO, TOOLS, asked, connected
from serving.fake_engine import MEDIUM_TOKENS, FakeEngine
from serving.signals import wav_bytes

CALL = '<tool_call>\n{"name": "count", "arguments": {"of": "cats"}}\n</tool_call>'


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_media_of_every_modality_in_several_turns(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    png, wav = tiny.png_bytes(0), wav_bytes(0.1)
    video = grey_video(16, 16, [0.0, 0.1]).read()  # type: ignore[arg-type]
    picture = {"type": "image_url", "image_url": {"url": data_url("image/png", png)}}
    sound = {"data": base64.b64encode(wav).decode(), "format": "wav"}
    first = [
        {"type": "text", "text": "a"},
        picture,
        picture,
        {"type": "input_audio", "input_audio": sound},
        {"type": "audio_url", "audio_url": {"url": data_url("audio/wav", wav)}},
        {"type": "video_url", "video_url": {"url": data_url("video/x-matroska", video)}},
        {"type": "text", "text": "b"},
    ]
    last = [
        {"type": "series", "series": [[1, None], [2.5, 3]]},
        {"type": "table", "table": {"age": 3, "name": "x", "none": None, "yes": True}},
        {"type": "vectors", "vectors": [[1, 2]]},
    ]
    answer = asked(
        client,
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": first},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": last},
        ],
    )
    (turns,) = engine.turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]  # type: ignore[union-attr]
    parts = turns[1].parts  # type: ignore[union-attr]
    assert [getattr(part, "modality", part) for part in parts] == [
        "a", "image", "image", "audio", "audio", "video", "b",
    ]  # fmt: skip
    assert [part.data for part in parts if isinstance(part, Media)] == [png, png, wav, wav, video]
    assert [json.loads(part.data) for part in turns[3].parts] == [  # type: ignore[union-attr]
        [[1, None], [2.5, 3]],
        {"age": 3, "name": "x", "none": None, "yes": True},
        [[1, 2]],
    ]
    details = answer.usage.prompt_tokens_details.model_dump(exclude_none=True)
    assert details == {
        "cached_tokens": 18,
        "text_tokens": 5,
        "image_tokens": 2 * MEDIUM_TOKENS,
        "audio_tokens": 2 * MEDIUM_TOKENS,
        **{f"{m}_tokens": MEDIUM_TOKENS for m in ("video", "series", "table", "vectors")},
    }


def test_a_modality_that_the_model_lacks_is_refused() -> None:
    content = [{"type": "text", "text": "?"}, {"type": "series", "series": [1.0]}]
    with (
        connected(FakeEngine(modalities=("image",))) as (_, client),
        pytest.raises(openai.BadRequestError) as caught,
    ):
        asked(client, messages=[{"role": "user", "content": content}])
    assert caught.value.param == "messages[0].content[1].series"
    assert "takes no series, only text, image" in str(caught.value)


# --- tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        (CALL, None, ["count"]),
        ('{"name": "count", "arguments": {"of": "cats"}}', None, ["count"]),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.\n", ["count", "count"]),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', None, ["other"]),
        ('{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),  # JSON, but no offered tool
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ("1 < 2 and <tool", "1 < 2 and <tool", []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_read_from_the_answer(
    client: openai.OpenAI,
    engine: FakeEngine,
    text: str,
    content: str | None,
    names: list[str],
    stream: bool,
) -> None:
    engine.script = lambda *_: list(text)  # a character is a token
    if stream:
        with client.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = asked(client, tools=TOOLS, parallel_tool_calls=True).choices[0]
    assert (choice.message.content or None) == content
    calls = choice.message.tool_calls or []
    assert [call.function.name for call in calls] == names
    assert len({call.id for call in calls}) == len(calls)
    assert choice.finish_reason == ("tool_calls" if names else "stop")
    if text == CALL:
        assert json.loads(calls[0].function.arguments) == {"of": "cats"}
    assert engine.tools == [TOOLS]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(
        [CALL, f"so: {CALL}", "a <tool_ call> b", '{"a": 1}', "  <<tool_call", "plain"]
    ),
    st.lists(st.integers(1, 7), max_size=30),
)
def test_how_an_answer_is_cut_does_not_matter(text: str, sizes: list[int]) -> None:
    whole = CallReader({"count"})
    expected = whole.feed(text), *whole.end()
    reader, shown, rest = CallReader({"count"}), "", text
    for size in sizes:
        shown += reader.feed(rest[:size])
        rest = rest[size:]
    shown += reader.feed(rest)
    tail, calls = reader.end()
    assert shown + tail == expected[0] + expected[1]
    assert [call["function"] for call in calls] == [call["function"] for call in expected[2]]
    assert "<tool_call>" not in shown


def test_tool_results_come_back_as_turns_of_the_template(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "count", "arguments": '{"of": "cats"}'},
    }
    asked(
        client,
        messages=[
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        tools=TOOLS,
        tool_choice="none",
    )
    _, called, told = engine.turns[0]
    assert called["tool_calls"][0]["function"] == {"name": "count", "arguments": {"of": "cats"}}  # type: ignore[index]
    assert told == {"role": "tool", "content": ("3",), "tool_call_id": "c1"}
    assert engine.tools == [None]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        (
            {"messages": [*HELLO, {"role": "tool", "tool_call_id": "c", "content": "3"}]},
            "messages[1]",
        ),
    ],
)
def test_a_template_without_tools_takes_none(
    client: openai.OpenAI, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    engine.takes_tools = False
    with pytest.raises(openai.BadRequestError, match="chat template") as caught:
        asked(client, **fields)
    assert caught.value.param == param
