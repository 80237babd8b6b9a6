"""/v1/chat/completions as OpenAI's own client sees it, before a scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from modalign.data.records import Message
from serving.by_openai import HELLO, asked, connected
from serving.fake_engine import FakeEngine, Served


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
    with connected(FakeEngine()) as (server, client):
        asked(client)
        with pytest.raises(openai.BadRequestError):
            asked(client, n=0)
        response = httpx2.get(f"{server.url}/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        assert "modalign_running 0.0" in response.text
    text = server.service.metrics.text().decode()  # all that was answered has been counted now
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    route = 'modalign_requests_total{route="/v1/chat/completions",status='
    assert (lines[f'{route}"200"}}'], lines[f'{route}"400"}}']) == ("1.0", "1.0")
    assert lines["modalign_new_tokens_total"] == "3.0"
    assert lines["modalign_prompt_tokens_total"] == "2.0"
    assert lines["modalign_time_to_first_token_seconds_count"] == "1.0"
    assert lines["modalign_time_per_token_seconds_count"] == "1.0"
    assert lines["modalign_media_hits_total"] == "3.0"


def test_health(server: Served) -> None:
    health = httpx2.get(f"{server.url}/health").json()
    assert (health["status"], health["model"], health["max_batch"]) == ("ok", "tiny", 4)
