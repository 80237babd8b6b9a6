"""The protocol of a chat model: messages in, text and tool calls out, tokens counted.

Messages and tools are plain mappings in the format of OpenAI's chat completions, which transformers'
chat templates read as well.
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
    """A call requested by the model.

    Attributes:
        name: the tool's name, as written by the model.
        arguments: the arguments' JSON as written by the model, possibly malformed.
        id: the id that the observation must refer to.
    """

    name: str
    arguments: str
    id: str

    def as_message_part(self) -> dict[str, Any]:
        """Return the call as part of the assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Reply:
    """A chat model's reply.

    Attributes:
        text: its text; empty if it only calls tools.
        calls: the tool calls, in order.
        finish: why it stopped: ``stop``, ``tool_calls``, ``length`` (truncated), ...
        prompt_tokens: tokens read; None if the server does not say.
        completion_tokens: tokens written; None if the server does not say.
        cached: whether it comes from the cache, without a request.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = False

    def as_message(self) -> ChatMessage:
        """Return the assistant's turn, to continue the conversation."""
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
        sample: distinguishes equal requests, so that another number gives another sample. It is part of
            the cache's key but not sent.
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
            EndpointError: there was no usable reply.
        """


class Usage:
    """Usage so far; thread-safe.

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
        """Count a retry."""
        with self._lock:
            self.retries += 1

    def failed(self) -> None:
        """Count a failed request."""
        with self._lock:
            self.failures += 1

    @property
    def cost(self) -> float:
        """Return the cost of the counted tokens."""
        read, written = self.prices
        return (self.prompt_tokens * read + self.completion_tokens * written) / 1e6

    def as_json(self) -> dict[str, float]:
        """Counts and cost."""
        names = "requests cached retries failures uncounted prompt_tokens completion_tokens cost"
        return {name: getattr(self, name) for name in names.split()}
