"""The protocol of a chat model: messages in, text and tool calls out, tokens counted.

Messages and tools are plain mappings in the form of OpenAI's chat completions, which chat templates
of transformers read as well.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

ChatMessage = dict[str, Any]
ToolSchema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        name: of the tool, as the model wrote it.
        arguments: the arguments' JSON, as the model wrote it: it may be malformed.
        id: what the observation must refer to.
    """

    name: str
    arguments: str
    id: str

    def as_message_part(self) -> dict[str, Any]:
        """The call as it stands in the assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a chat model answered.

    Attributes:
        text: its text; empty where it only calls tools.
        calls: the tool calls, in order.
        finish: why it stopped: ``stop``, ``tool_calls``, ``length`` (cut short), ...
        prompt_tokens: tokens read; None where the server does not say.
        completion_tokens: tokens written; None where the server does not say.
        cached: whether it comes from the cache: no request was made, nothing was paid.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = False

    def as_message(self) -> ChatMessage:
        """The assistant's turn for the conversation that goes on."""
        message: ChatMessage = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [call.as_message_part() for call in self.calls]
        return message


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to complete.

    Attributes:
        messages: the turns.
        tools: schemas of the tools that may be called.
        settings: further fields of the request: temperature, max_tokens, seed, stop, ...
        sample: a number that tells equal requests apart: another number, another draw. It is part of the
            cache's key and is not sent.
    """

    messages: Sequence[ChatMessage]
    tools: Sequence[ToolSchema] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    sample: int = 0


class Chat(Protocol):
    """A chat model, wherever it runs."""

    model: str
    usage: Usage

    def complete(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolSchema] | None = None,
        *,
        sample: int = 0,
        **settings: Any,
    ) -> Reply:
        """Answer the last turn.

        Raises:
            EndpointError: there is no usable reply.
        """


class Usage:
    """What was used so far; safe to add to from several threads.

    Args:
        prices: cost of a million prompt and of a million completion tokens, in any currency.
    """

    def __init__(self, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        self.prices = prices
        self.requests = self.cached = self.retries = self.failures = self.uncounted = 0
        self.prompt_tokens = self.completion_tokens = 0
        self._lock = threading.Lock()

    def add(self, reply: Reply) -> None:
        """Count a reply; one from the cache costs nothing."""
        with self._lock:
            if reply.cached:
                self.cached += 1
                return
            self.requests += 1
            self.uncounted += reply.prompt_tokens is None or reply.completion_tokens is None
            self.prompt_tokens += reply.prompt_tokens or 0
            self.completion_tokens += reply.completion_tokens or 0

    def retried(self) -> None:
        """Count an attempt that is made again."""
        with self._lock:
            self.retries += 1

    def failed(self) -> None:
        """Count a request that was given up."""
        with self._lock:
            self.failures += 1

    @property
    def cost(self) -> float:
        """What the counted tokens cost."""
        read, written = self.prices
        return (self.prompt_tokens * read + self.completion_tokens * written) / 1e6

    def as_json(self) -> dict[str, float]:
        """Counts and cost."""
        names = "requests cached retries failures uncounted prompt_tokens completion_tokens cost"
        return {name: getattr(self, name) for name in names.split()}
