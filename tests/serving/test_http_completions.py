"""/v1/completions as OpenAI's own client sees it, before a scripted engine."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from serving.by_openai import connected
from serving.fake_engine import FakeEngine


def asked(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    return client.completions.create(model="tiny", prompt=prompt, **fields)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97, 98], [99]], [(97, 98), (99,)]),
    ],
)
def test_prompts_of_every_form(
    client: openai.OpenAI, engine: FakeEngine, prompt: Any, ids: list[tuple[int, ...]]
) -> None:
    answer = asked(client, prompt)
    assert [row.prompt.ids for row in engine.submitted] == ids
    assert [choice.text for choice in answer.choices] == ["Hello there!"] * len(ids)
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 3 * len(ids)
    assert engine.submitted[0].sampling.max_tokens == 16  # OpenAI's default
    echoed = asked(client, prompt, echo=True)
    texts = ["".join(map(chr, one)) + "Hello there!" for one in ids]
    assert [choice.text for choice in echoed.choices] == texts
    streamed = [""] * len(ids)
    for chunk in asked(client, prompt, echo=True, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_answers_are_in_the_order_of_prompts_then_n(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.script = lambda prompt, sampling: [chr(prompt.ids[0]), str(sampling.seed)]
    answer = asked(client, ["a", "b"], n=2, seed=5)
    assert [choice.text for choice in answer.choices] == ["a5", "a6", "b5", "b6"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 2  # each once


def test_scoring_a_prompt(client: openai.OpenAI, engine: FakeEngine) -> None:
    """``echo`` with ``max_tokens`` 0: what evaluation harnesses ask for."""
    choice = asked(client, "abc", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.logprobs.token_logprobs == [None, -1.0, -1.0]
    assert choice.logprobs.top_logprobs == [None, {"b": -1.0}, {"c": -1.0}]
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert engine.submitted[0].sampling.prompt_logprobs
    asked(client, "abc", echo=True)
    assert not engine.submitted[-1].sampling.prompt_logprobs  # costs memory, and nobody asked


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_prompt_and_answer(client: openai.OpenAI, stream: bool) -> None:
    answer = asked(client, "ab", echo=True, logprobs=3, stream=stream)
    found = [c.choices[0].logprobs for c in answer] if stream else [answer.choices[0].logprobs]
    found = [one for one in found if one is not None]
    assert [token for one in found for token in one.tokens] == ["a", "b", "Hello", " there", "!"]
    assert [value for one in found for value in one.text_offset] == [0, 1, 2, 7, 13]
    last = found[-1].top_logprobs[-1]
    assert last == {"!": -0.5, "other": -2.0, "never": -9999.0}


def test_log_probabilities_without_alternatives(client: openai.OpenAI) -> None:
    logprobs = asked(client, "a", logprobs=0).choices[0].logprobs
    assert logprobs.token_logprobs == [-0.5, -0.5, -0.5]
    assert logprobs.top_logprobs is None


def test_more_prompts_than_the_engine_has_places_for() -> None:
    engine = FakeEngine(max_batch=2, max_waiting=1)
    with connected(engine) as (_, small):
        answer = asked(small, [f"{n}" for n in range(40)])
    assert [choice.text for choice in answer.choices] == ["Hello there!"] * 40
    assert len(engine.submitted) == 40


def test_usage_at_the_end_of_a_stream(client: openai.OpenAI) -> None:
    chunks = list(asked(client, ["a", "b"], stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens == 6
    assert not chunks[-1].choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 64}, "prompt"),
    ],
)
def test_wrong_fields_are_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "prompt": "a", **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body=body, cast_to=object)
    assert caught.value.param == param


def test_what_the_engine_says_of_a_prompt_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt has no tokens"):
        asked(client, "")
    with pytest.raises(openai.BadRequestError, match="this model has 256"):
        asked(client, [300])


def test_neutral_best_of_and_suffix(client: openai.OpenAI) -> None:
    assert len(asked(client, "a", n=2, best_of=2, suffix="").choices) == 2
