"""Parse tool calls from the text of a model whose tokenizer has no response template.

Two forms cover most open models: a JSON mapping between ``<tool_call>`` tags (Hermes, Qwen), and an
answer that consists only of such a mapping (Llama 3).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from modalign.endpoints.chat import ChatMessage, ToolCall, ToolSchema
from modalign.strict_json import loads

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

THINK, THOUGHT = "<think>", "</think>"

INSTRUCTIONS = """You may call these tools, one JSON schema a line:
{schemas}
To call one, answer with nothing but
<tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>"""


def end_of_thoughts(text: str, thinking: bool = False) -> int:
    """Return where a reply's thoughts end (``<think> ... </think>``); they are neither shown nor called.

    Args:
        text: the reply.
        thinking: whether the prompt has already opened them. The first tag may be missing otherwise too.
    """
    end = text.rfind(THOUGHT)
    if end >= 0:
        return end + len(THOUGHT)
    return len(text) if thinking or text.lstrip().startswith(THINK) else 0


def split_calls(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a model's text into text and calls; a malformed call has no name and all its text."""
    found = find_calls(text)
    return without(text, [span for span, _ in found]), tuple(call for _, call in found)


def find_calls(text: str) -> list[tuple[tuple[int, int], ToolCall]]:
    """Find calls in a text and their spans; a malformed one has no name and all its text."""
    found = [
        (match.span(), _call(match.group(1), place))
        for place, match in enumerate(_TAGGED.finditer(text))
    ]
    if not found and text.lstrip().startswith("{"):
        call = _call(text, 0)
        return [((0, len(text)), call)] if call.name else []
    return found


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Remove ordered spans from a text."""
    kept, place = "", 0
    for begin, end in spans:
        kept, place = kept + text[place:begin], end
    return (kept + text[place:]).strip()


def _call(body: str, place: int) -> ToolCall:
    identity = f"call_{place}"
    try:
        value = loads(body)
        name = value["name"]
        arguments = value.get("arguments", value.get("parameters", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ToolCall("", body.strip(), identity)
    if not isinstance(name, str):
        return ToolCall("", body.strip(), identity)
    return ToolCall(
        name, arguments if isinstance(arguments, str) else json.dumps(arguments), identity
    )


def with_mappings(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Convert the arguments of calls to mappings, as chat templates expect.

    Arguments that are not a JSON mapping stay text.
    """
    return [
        {**message, "tool_calls": [_with_mapping(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _with_mapping(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    with suppress(ValueError):
        arguments = loads(function["arguments"])
        if isinstance(arguments, dict):
            function["arguments"] = arguments
    return {**call, "function": function}


def as_plain_text(
    messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] | None
) -> list[ChatMessage]:
    """Rewrite a conversation for a template without tools: schemas, calls and observations as text."""
    plain: list[ChatMessage] = []
    for message in messages:
        if message["role"] == "tool":
            plain.append({"role": "user", "content": f"Observation: {message['content']}"})
        elif message.get("tool_calls"):
            calls = "\n".join(_tagged(call) for call in message["tool_calls"])
            content = f"{message.get('content') or ''}\n{calls}".strip()
            plain.append({"role": "assistant", "content": content})
        else:
            plain.append({"role": message["role"], "content": message.get("content") or ""})
    if tools:
        schemas = "\n".join(json.dumps(tool) for tool in tools)
        place = next((i for i, message in enumerate(plain) if message["role"] == "user"), None)
        if (
            place is not None
        ):  # into the first user turn, because not every template accepts a system turn
            asked = plain[place]["content"]
            told = INSTRUCTIONS.format(schemas=schemas)
            plain[place] = {"role": "user", "content": f"{told}\n\n{asked}"}
    return _joined(plain)


def _tagged(call: dict[str, Any]) -> str:
    function = call["function"]
    name = json.dumps(function["name"])
    return f'<tool_call>{{"name": {name}, "arguments": {function["arguments"]}}}</tool_call>'


def _joined(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Merge adjacent turns of one role, because many templates require alternating roles."""
    joined: list[ChatMessage] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined
