"""Fields of a chat: those that mean nothing here, and those that are refused, each by its name."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from modalign.serving.http.fields import HARMLESS, NEUTRAL
from serving.by_openai import HELLO, TOOLS, asked


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
