"""The result of a question: the answer, the steps, the cost, the failures."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from modalign.endpoints import Chat, EndpointError, EndpointUsageError, Reply


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: ``reply`` (of the language model), ``program`` (that was run), ``call`` (of a tool)
            or ``failure``.
        content: JSON-able content.
        seconds: duration.
    """

    kind: str
    content: dict[str, Any]
    seconds: float = 0.0


@dataclass
class Spent:
    """The cost of an answer; cached replies count with their original tokens.

    Attributes:
        replies: of the language model.
        prompt_tokens: that it read, where its server counts them.
        completion_tokens: that it wrote, likewise.
        calls: of tools.
        tool_seconds: that tools took.
        seconds: in all.
    """

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    tool_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class AssistedAnswer:
    """The outcome of one question, whatever tools and model did.

    Attributes:
        text: the answer; None if there is none.
        steps: the steps, in order.
        cost: the cost.
        failures: kind -> count of failed programs, calls and replies.
    """

    text: str | None
    steps: tuple[Step, ...]
    cost: Spent
    failures: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the transcript as plain data."""
        return asdict(self)


@dataclass
class Transcript:
    """Records the steps of one question.

    Args:
        chat: the language model.
        settings: of each of its replies.
    """

    chat: Chat
    settings: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)
    began: float = field(default_factory=time.monotonic)

    def ask(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> Reply | None:
        """Return the model's next reply; None, and a recorded failure, if there is none.

        Raises:
            EndpointUsageError: no reply is possible at all.
        """
        began = time.monotonic()
        try:
            reply = self.chat.complete(messages, tools, **self.settings)
        except EndpointUsageError:
            raise
        except EndpointError as error:
            self.fail("no-reply", str(error))
            return None
        self.spent.replies += 1
        self.spent.prompt_tokens += reply.prompt_tokens or 0
        self.spent.completion_tokens += reply.completion_tokens or 0
        self.steps.append(Step("reply", asdict(reply), time.monotonic() - began))
        return reply

    def called(self, content: dict[str, Any], seconds: float, problem: str | None) -> None:
        """Record a tool call."""
        self.spent.calls += 1
        self.spent.tool_seconds += seconds
        self.steps.append(Step("call", content, seconds))
        if problem:
            self.failures[f"tool-{problem}"] += 1

    def fail(self, kind: str, message: str) -> None:
        """Record a failed reply, program or call."""
        self.failures[kind] += 1
        self.steps.append(Step("failure", {"kind": kind, "message": message}))

    def end(self, text: str | None) -> AssistedAnswer:
        """Finish with an answer; blank text means none."""
        self.spent.seconds = time.monotonic() - self.began
        said = (text or "").strip() or None
        return AssistedAnswer(said, tuple(self.steps), self.spent, dict(self.failures))


def bounded_json(value: Any, limit: int) -> str:
    """Return a value as text, JSON unless it is text already, of at most ``limit`` characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]} ... (cut, {len(text):,} characters)"
