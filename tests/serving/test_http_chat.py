"""/v1/chat/completions as OpenAI's own client sees it, before a scripted engine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from modalign.data.records import Media, Message
from modalign.data.video import grey_video
from modalign.serving.http.calls import CallReader
from modalign.serving.http.fields import HARMLESS, NEUTRAL
from serving.fake_engine import MEDIUM_TOKENS, FakeEngine, Served, served
from serving.signals import wav_bytes

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
]
CALL = '<tool_call>\n{"name": "count", "arguments": {"of": "cats"}}\n</tool_call>'


@contextmanager
def connected(engine: FakeEngine) -> Iterator[tuple[Served, openai.OpenAI]]:
    """A server and a client of it."""
    with (
        served(engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def one_server() -> Iterator[tuple[FakeEngine, Served, openai.OpenAI]]:
    """Starting and ending a server takes longer than a test."""
    engine = FakeEngine()
    with connected(engine) as (server, client):
        yield engine, server, client


@pytest.fixture
def engine(one_server: tuple[FakeEngine, Served, openai.OpenAI]) -> FakeEngine:
    """The server's engine, as if it were new."""
    engine = one_server[0]
    for seen in (engine.turns, engine.tools, engine.submitted):
        seen.clear()
    engine.script, engine.takes_tools, engine.steps = FakeEngine.script, True, None
    return engine


@pytest.fixture
def server(one_server: tuple[FakeEngine, Served, openai.OpenAI], engine: FakeEngine) -> Served:
    return one_server[1]


@pytest.fixture
def client(
    one_server: tuple[FakeEngine, Served, openai.OpenAI], engine: FakeEngine
) -> openai.OpenAI:
    return one_server[2]


def asked(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, **fields}  # type: ignore[call-overload]
    )


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_an_answer_and_its_usage(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = asked(client, messages=[{"role": "developer", "content": "be kind"}, *HELLO])
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == ("Hello there!", "assistant")
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4, "text_tokens": 9},
    }
    assert engine.turns == [[Message("system", ("be kind",)), Message("user", ("hi",))]]


def test_prompts_are_prepared_on_threads_of_the_pool(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    asked(client)
    assert all(name.startswith("modalign-request") for name in engine.threads)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = asked(client)
    chunks = list(asked(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert texts == ["Hello", " there", "!"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_stream_ends_with_done(server: Served) -> None:
    body = {"messages": HELLO, "stream": True}
    with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])


def test_tokens_arrive_while_the_answer_is_made(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.steps = 1
    stream = iter(asked(client, stream=True))
    next(stream)
    assert next(stream).choices[0].delta.content == "Hello"
    assert engine.running[0].made == 1
    engine.allow(None)
    assert len(list(stream)) == 3


def test_many_clients_get_their_own_answers(server: Served, engine: FakeEngine) -> None:
    engine.script = lambda prompt, _: [chr(token) for token in prompt.ids]

    async def ask(client: openai.AsyncOpenAI, text: str, stream: bool) -> str:
        messages: Any = [{"role": "user", "content": text}]
        if not stream:
            whole = await client.chat.completions.create(model="tiny", messages=messages)
            return whole.choices[0].message.content or ""
        said = ""
        async for chunk in await client.chat.completions.create(
            model="tiny", messages=messages, stream=True
        ):
            said += chunk.choices[0].delta.content or ""
        return said

    async def everyone(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(
                *(ask(client, f"number {n} asks", n % 2 == 0) for n in range(10))
            )

    assert asyncio.run(everyone(server.url)) == [f"number {n} asks" for n in range(10)]


def test_settings_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    asked(client)
    plain = engine.submitted[-1].sampling
    assert (plain.temperature, plain.top_p, plain.seed, plain.stop) == (1.0, 1.0, None, ())
    assert plain.max_tokens == engine.max_length - 2
    asked(
        client,
        temperature=0.5,
        top_p=0.9,
        seed=-3,
        stop=["a", "b"],
        max_tokens=5,
        extra_body={"ignore_eos": True},
    )
    given_ = engine.submitted[-1].sampling
    assert (given_.temperature, given_.top_p, given_.seed) == (0.5, 0.9, -3)
    assert (given_.stop, given_.max_tokens, given_.ignore_end) == (("a", "b"), 5, True)
    asked(client, stop="c", max_completion_tokens=2)
    assert engine.submitted[-1].sampling.stop == ("c",)
    answer = asked(client, max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "Hello there",
        "length",
    )


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = asked(client, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [row.sampling.seed for row in engine.submitted] == [7, 8, 9]
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 9
    streamed: dict[int, str] = {}
    for chunk in asked(client, n=3, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert streamed == dict.fromkeys(range(3), "Hello there!")


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, stream: bool) -> None:
    answer = asked(client, logprobs=True, top_logprobs=3, stream=stream)
    if stream:
        found = [c.choices[0].logprobs for c in answer]
        tokens = [token for one in found if one for token in one.content]
    else:
        tokens = answer.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["Hello", " there", "!"]
    assert tokens[1].bytes == list(b" there")
    assert tokens[1].logprob == -0.5
    # JSON has no infinity: OpenAI's stand-in.
    assert [top.logprob for top in tokens[2].top_logprobs] == [-0.5, -2.0, -9999.0]


# --- media --------------------------------------------------------------------------------------


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


# --- fields and errors --------------------------------------------------------------------------


def test_neutral_fields_are_accepted(client: openai.OpenAI) -> None:
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    harmless = dict.fromkeys(HARMLESS, "x")
    nothing = dict.fromkeys([*NEUTRAL, *HARMLESS])
    for extra in (neutral, harmless, nothing):
        assert asked(client, extra_body=extra).choices[0].message.content == "Hello there!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 65}, "n"),
        ({"n": 0}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required", "tools": TOOLS}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"temprature": 0}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_what_is_not_carried_out_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "messages": HELLO, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in str(caught.value)


def test_too_long_a_conversation(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        asked(client, max_tokens=4095)
    assert caught.value.code == "context_length_exceeded"
    assert "2 tokens of prompt and 4095 of answer" in str(caught.value)
    assert "at most 4094" in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="4096 tokens of prompt"):
        asked(client, messages=[{"role": "user", "content": 4096 * "x"}])


def test_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        asked(client, model="gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt/9")
    assert client.models.retrieve("tiny").id == "tiny"
    assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_at_once_is_a_500_without_its_words(
    client: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    engine.script = lambda *_: ["ERROR"]
    with pytest.raises(openai.APIError) as caught:
        list(asked(client, stream=stream))
    assert "the model failed" in str(caught.value)
    assert "secret" not in str(caught.value)
    if not stream:
        assert isinstance(caught.value, openai.InternalServerError)


def test_a_model_that_fails_later_ends_the_stream_with_the_error(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script, engine.steps = lambda *_: ["Hello", "ERROR"], 1
    stream = asked(client, stream=True)
    next(stream), next(stream)
    engine.allow(None)
    with pytest.raises(openai.APIError, match="the model failed"):
        list(stream)


def test_figures_for_prometheus() -> None:
    with (
        served(FakeEngine()) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        check_figures(client, server)


def check_figures(client: openai.OpenAI, server: Served) -> None:
    asked(client)
    with pytest.raises(openai.BadRequestError):
        asked(client, n=0)
    response = httpx2.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if line[0] != "#")
    route = 'modalign_requests_total{route="/v1/chat/completions",status='
    assert (lines[f'{route}"200"}}'], lines[f'{route}"400"}}']) == ("1.0", "1.0")
    assert lines["modalign_new_tokens_total"] == "3.0"
    assert lines["modalign_prompt_tokens_total"] == "2.0"
    assert lines["modalign_time_to_first_token_seconds_count"] == "1.0"
    assert lines["modalign_time_per_token_seconds_count"] == "1.0"
    assert (lines["modalign_media_hits_total"], lines["modalign_running"]) == ("3.0", "0.0")


def test_health(server: Served) -> None:
    health = httpx2.get(f"{server.url}/health").json()
    assert (health["status"], health["model"], health["max_batch"]) == ("ok", "tiny", 4)
