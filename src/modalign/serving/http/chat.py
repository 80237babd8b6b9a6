"""/v1/chat/completions: turn a conversation into prompts, and events into messages and chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalign.serving.http.answering import Work
from modalign.serving.http.calls import CallReader
from modalign.serving.http.conversation import turns_of
from modalign.serving.http.errors import refused
from modalign.serving.http.media import MediaReader
from modalign.serving.http.runs import Ask
from modalign.serving.http.sampled import asks_for, room, sampling_of
from modalign.serving.http.schemas import ChatRequest
from modalign.serving.http.shapes import Collected, Shape, finite
from modalign.serving.requests import Delta, Engine, Event, Scored, Started


def prepare(request: ChatRequest, engine: Engine, reader: MediaReader, name: str) -> Work:
    """Decode and tokenise a conversation; called on a thread of the pool.

    Raises:
        ApiError, PromptError: a field, a medium or the length is invalid.
    """
    _check(request, engine)
    tools = _tools(request)
    turns = turns_of(request.messages, reader, engine.takes_tools)
    with reader.decoded(turns) as decoded:
        prompt = engine.chat_prompt(decoded, tools)
    asked = request.max_completion_tokens or request.max_tokens
    most = room(engine, prompt, asked, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    sampling = replace(sampling_of(request), max_tokens=most, logprobs=logprobs)
    asks: list[Ask] = asks_for([prompt], sampling, request.n or 1)
    stream_usage = bool(request.stream_options and request.stream_options.include_usage)
    names = {tool["function"]["name"] for tool in tools} if tools else None
    readers = None if names is None else [CallReader(names, prompt.thinking) for _ in asks]
    shape = ChatShape(name, readers, logprobs is not None, stream_usage)
    return Work([prompt], asks, shape, bool(request.stream), stream_usage)


def _check(request: ChatRequest, engine: Engine) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise refused("top_logprobs", "needs logprobs: true")
    if request.tools and not engine.takes_tools:
        raise refused(
            "tools", "this model's chat template does not support tools", "unsupported_value"
        )
    if request.tool_choice not in (None, "auto", "none"):
        raise refused(
            "tool_choice",
            'only "auto" and "none" are supported: the model is not forced to call',
            "unsupported_value",
        )
    if request.tool_choice == "auto" and not request.tools:
        raise refused("tool_choice", "needs tools")


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    if not request.tools or request.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_unset=True) for tool in request.tools]


class ChatShape(Shape):
    """Answers of a chat.

    Args:
        name: name of the model.
        readers: readers of the calls in each answer; None if no tools are offered.
        logprobs: whether tokens carry their log-probabilities.
        usage: whether chunks have the field ``usage``.
    """

    def __init__(
        self, name: str, readers: Sequence[CallReader] | None, logprobs: bool, usage: bool
    ) -> None:
        super().__init__(("chat.completion", "chat.completion.chunk"), "chatcmpl", name, usage)
        self._readers = readers
        self._logprobs = logprobs

    def chunk(self, choice: int, event: Event) -> str:
        """See :class:`Shape`."""
        if isinstance(event, Delta):
            text = self._readers[choice].feed(event.text) if self._readers else event.text
            if not text and not event.tokens:
                return ""
            logprobs = json.dumps(_logprobs(event.tokens)) if self._logprobs else "null"
            return self._delta(choice, f'{{"content":{json.dumps(text)}}}', logprobs)
        if isinstance(event, Started):
            return self._delta(choice, '{"role":"assistant","content":"","refusal":null}')
        text, calls = self._readers[choice].end() if self._readers else ("", [])
        chunks = ""
        if text:
            chunks += self._delta(choice, f'{{"content":{json.dumps(text)}}}')
        if calls:
            numbered = [{"index": place, **call} for place, call in enumerate(calls)]
            chunks += self._delta(choice, json.dumps({"tool_calls": numbered}))
        return chunks + self._delta(choice, "{}", finish="tool_calls" if calls else event.reason)

    def _delta(
        self, choice: int, delta: str, logprobs: str = "null", finish: str | None = None
    ) -> str:
        return self.written(choice, f'"delta":{delta}', logprobs, finish)

    def choice(self, place: int, answer: Collected) -> dict[str, Any]:
        """See :class:`Shape`."""
        text: str | None = answer.text
        calls: list[dict[str, Any]] = []
        if self._readers is not None:
            shown = self._readers[place].feed(answer.text)
            rest, calls = self._readers[place].end()
            text = shown + rest
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return {
            "index": place,
            "message": message,
            "logprobs": _logprobs(answer.tokens) if self._logprobs else None,
            "finish_reason": "tool_calls" if calls else answer.reason,
        }


def _logprobs(tokens: Sequence[Scored]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": finite(token.logprob or 0.0),
                "bytes": list(token.data),
                "top_logprobs": [
                    {
                        "token": other.name,
                        "logprob": finite(other.logprob),
                        "bytes": list(other.data),
                    }
                    for other in token.top
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }
