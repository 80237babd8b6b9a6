"""A language model in this process: prompts by its template, replies read by its own rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from modalign.endpoints import EndpointError, LocalChat, Reply, ToolCall
from modalign.endpoints.tool_calls import as_plain_text, end_of_thoughts, split_calls
from modalign.errors import UsageError

ASKED = [{"role": "user", "content": "which digit is on the left?"}]
SCHEMA = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}
TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.n }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
RESPONSE = {
    "version": 1,
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}
TALK = [
    *ASKED,
    Reply("", (ToolCall("look", '{"n": 1}', "a"), ToolCall("look", '{"n": 2}', "b"))).as_message(),
    {"role": "tool", "tool_call_id": "a", "name": "look", "content": "three"},
    {"role": "tool", "tool_call_id": "b", "name": "look", "content": "four"},
]


@pytest.fixture
def chat(llm_folder: Callable[..., Path]) -> Callable[..., LocalChat]:
    def make(template: str | None = TEMPLATE, **options: Any) -> LocalChat:
        tokenizer: Any = AutoTokenizer.from_pretrained(llm_folder())
        tokenizer.chat_template = template
        model = AutoModelForCausalLM.from_pretrained(llm_folder()).eval()
        return LocalChat(model, tokenizer, **{"max_tokens": 5, **options})

    return make


def test_greedy_is_the_model_itself(chat: Callable[..., LocalChat]) -> None:
    local = chat()
    reply = local.complete(ASKED)
    ids = local.tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    expected = []
    for _ in range(5):  # token by token, without a cache
        ids_now = ids if not expected else ids.new_tensor([[*ids[0].tolist(), *expected]])
        expected.append(int(local.language_model(ids_now).logits[0, -1].argmax()))
        if expected[-1] in local.end_ids:
            break
    assert reply.text == local.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(expected))
    assert reply.finish == ("stop" if expected[-1] in local.end_ids else "length")


def test_an_end_is_an_end(chat: Callable[..., LocalChat]) -> None:
    local = chat(max_tokens=20)
    ids = local._prompt(ASKED, None)
    first = int(local.language_model(ids).logits[0, -1].argmax())
    local.language_model.generation_config.eos_token_id = [first]
    reply = LocalChat(local.language_model, local.tokenizer, max_tokens=20).complete(ASKED)
    assert (reply.completion_tokens, reply.finish) == (1, "stop")


def test_draws_can_be_repeated(chat: Callable[..., LocalChat]) -> None:
    local = chat(max_tokens=12)
    drawn = [local.complete(ASKED, temperature=2.0, seed=s, sample=n) for s, n in
             ((1, 0), (1, 0), (0, 1), (5, 0))]  # fmt: skip
    texts = [reply.text for reply in drawn]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert local.usage.requests == 4


def test_a_reply_ends_with_the_context(chat: Callable[..., LocalChat]) -> None:
    local = chat(max_tokens=1000)
    prompt = local._prompt(ASKED, None).shape[1]
    context = local.language_model.config.max_position_embeddings
    assert local._limit(prompt, None) == context - prompt
    assert local._limit(prompt, 7) == 7
    with pytest.raises(EndpointError, match="1000 of reply are more than its context"):
        local.complete(ASKED, max_tokens=1000)


def test_settings_it_does_not_know(chat: Callable[..., LocalChat]) -> None:
    with pytest.raises(UsageError, match="has no setting response_format; it has max_tokens"):
        chat().complete(ASKED, response_format={})


def test_a_template_that_refuses(chat: Callable[..., LocalChat]) -> None:
    with pytest.raises(EndpointError, match="alternate"):
        chat(PLAIN).complete([{"role": "system", "content": "be short"}, *ASKED])


def test_tools_in_the_template(chat: Callable[..., LocalChat]) -> None:
    local = chat()
    rendered = local.tokenizer.decode(local._prompt(TALK, [SCHEMA])[0])
    plain = local.tokenizer.decode(
        local.tokenizer(
            "[look]<user>which digit is on the left?<assistant>12<tool>three<tool>four<assistant>"
        )["input_ids"]
    )
    assert local.knows_tools
    assert rendered == plain


def test_tools_as_text_where_the_template_knows_none(chat: Callable[..., LocalChat]) -> None:
    local = chat(PLAIN)
    assert not local.knows_tools
    assert local._prompt(TALK, [SCHEMA]).shape[1] > local._prompt(ASKED, None).shape[1]
    first, second, third = as_plain_text(TALK, [SCHEMA])
    assert json.dumps(SCHEMA) in first["content"]
    assert first["content"].endswith("which digit is on the left?")
    assert split_calls(second["content"])[1] == (
        ToolCall("look", '{"n": 1}', "call_0"),
        ToolCall("look", '{"n": 2}', "call_1"),
    )
    assert third == {"role": "user", "content": "Observation: three\nObservation: four"}


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ("plain", "plain", []),
        ('<call>{"name": "look", "arguments": {"n": 3}}</call>', "", [("look", {"n": 3})]),
        ('so <call>{"name": "look", "arguments": {"n": "3"}}</call>', "so", [("look", {"n": 3})]),
        ('<call>{"name": "look"}</call><call>{"name": "look", "arguments": {}}</call>', "",
         [("look", {}), ("look", {})]),
    ],
)  # fmt: skip
def test_the_tokenizers_own_rules_read_a_reply(
    said: str,
    text: str,
    calls: list[Any],
    chat: Callable[..., LocalChat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = chat()
    local.tokenizer.response_template = RESPONSE
    prompt = local._prompt(ASKED, None)
    spoken = {5: said, prompt.shape[1]: "<user>?<assistant>"}
    monkeypatch.setattr(local.tokenizer, "decode", lambda ids, **_: spoken[len(ids)])
    found, got = local._read(prompt, prompt[0, :5], [SCHEMA])
    assert found == text
    assert [(call.name, json.loads(call.arguments)) for call in got] == calls


@pytest.mark.parametrize("said", ["<call>{not json</call>", "<call>[1]</call>", "<call>3</call>"])
def test_a_malformed_call_stays_one(
    said: str, chat: Callable[..., LocalChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = chat()
    local.tokenizer.response_template = RESPONSE
    prompt = local._prompt(ASKED, None)
    monkeypatch.setattr(local.tokenizer, "decode", lambda *_, **__: said)
    assert local._read(prompt, prompt[0, :5], [SCHEMA]) == ("", (ToolCall("", said, "call_0"),))


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("no call", "no call", []),
        (
            '<tool_call>\n{"name": "a", "arguments": {"b": 1}}\n</tool_call>',
            "",
            [("a", '{"b": 1}')],
        ),
        ('<tool_call>{"name": "a"}', "", [("a", "{}")]),
        ('first <tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "first", [("a", "{}")]),
        ('{"name": "a", "parameters": {"b": 1}}', "", [("a", '{"b": 1}')]),
        ('{"answer": 1}', '{"answer": 1}', []),
        ("<tool_call>{oh</tool_call>", "", [("", "{oh")]),
        ("<tool_call>[]</tool_call>", "", [("", "[]")]),
        ('<tool_call>{"name": 7}</tool_call>', "", [("", '{"name": 7}')]),
    ],
)
def test_calls_in_text(text: str, rest: str, calls: list[Any]) -> None:
    found, got = split_calls(text)
    assert (found, [(call.name, call.arguments) for call in got]) == (rest, calls)


@pytest.mark.parametrize(
    "text", ["<think>hm\n</think>\nseven", "hm </think> seven", " seven ", "<think></think>seven"]
)
def test_thoughts_are_no_answer(text: str) -> None:
    assert text[end_of_thoughts(text) :].strip() == "seven"


def test_no_template(chat: Callable[..., LocalChat]) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        chat(None)
