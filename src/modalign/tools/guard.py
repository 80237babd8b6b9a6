"""The only way in which modalign calls a tool: whatever the tool does, the caller continues.

A tool that raises, hangs, dies, returns binary data or far too much gives an :class:`Outcome` that
records it: its text is bounded, its problem counted. If a process that can be killed keeps the deadline
(callables by import path, MCP servers, tesseract), the tool does so itself. All others (pipelines,
OCR and speech models, modalign's own) run in a daemon thread, because sharing the model's memory is worth
more there than being able to kill it: a hanging call is abandoned, and after `GIVE_UP_AFTER` of
them in a row the tool is not called any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modalign.data.records import Media
from modalign.tools.base import Json, Tool, ToolError, ToolTimeoutError
from modalign.tools.results import Line, bounded, lines

GIVE_UP_AFTER = 3
NO_RESULT = "no result"
MAX_MESSAGE = 300
# Temporary problems; all others are the tool's answer to this medium.
PASSING = ("timeout", "died", "given-up")


@dataclass(frozen=True)
class CallOutcome:
    """The result of one call.

    Attributes:
        result: bounded JSON-able data; None if there is none.
        seconds: that the call took.
        problem: None, or a word to count: ``raised``, ``arguments``, ``timeout``, ``given-up``, ``died``,
            ``not-text``, or ``too-long`` (the result is there, but cut).
        message: the problem in words, at most `MAX_MESSAGE` characters.
    """

    result: Json
    seconds: float = 0.0
    problem: str | None = None
    message: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return self.problem not in {None, "too-long"}

    @property
    def lines(self) -> list[Line]:
        """Return the lines found; for a failed call the single line `NO_RESULT` with score 0."""
        return [Line(NO_RESULT, 0.0)] if self.failed else lines(self.result)

    @property
    def text(self) -> str:
        """Return the lines as one text, including a failure's reason, as an observation for a language model."""
        if self.failed:
            return f"{NO_RESULT}: {self.message}"
        return "\n".join(line.text for line in self.lines)


def call_safely(tool: Tool, medium: Media, **arguments: Any) -> CallOutcome:
    """Call a tool; never raise its exceptions, never wait much longer than its timeout."""
    if tool.timeouts >= GIVE_UP_AFTER:
        hung = f"{tool.name} is not called any more: it hung {tool.timeouts} times in a row"
        return CallOutcome(None, 0.0, "given-up", hung)
    started = time.perf_counter()
    problem, message, result = None, "", None
    try:
        tool.load()
        started = time.perf_counter()
        answer = bounded(_in_time(tool, medium, arguments), tool.max_characters)
        result = answer.value
        tool.timeouts = 0
        if answer.length > tool.max_characters:
            problem = "too-long"
            message = f"{answer.length:,} characters, cut at {tool.max_characters:,}"
    except ToolError as error:
        problem, message = error.kind, str(error)
        tool.timeouts += isinstance(error, ToolTimeoutError)
    except Exception as error:
        problem, message = "raised", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    tool.calls += 1
    tool.seconds += seconds
    return CallOutcome(result, seconds, problem, message[:MAX_MESSAGE])


def _in_time(tool: Tool, medium: Media, arguments: dict[str, Any]) -> Any:
    if tool.keeps_deadline:
        return tool(medium, **arguments)
    return in_time(lambda: tool(medium, **arguments), tool.name, tool.timeout)


def in_time(call: Callable[[], Any], name: str, timeout: float) -> Any:
    """Call on a thread of its own, which is abandoned when it takes too long.

    Raises:
        ToolTimeoutError: no answer within the timeout, in seconds.
        ToolError: it raised something that is no ordinary exception; others are raised as they are.
    """
    answer: dict[str, Any] = {}

    def work() -> None:
        try:
            answer["result"] = call()
        except BaseException as error:  # SystemExit too: a tool does not end the program
            answer["error"] = error

    thread = threading.Thread(target=work, name=f"tool {name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ToolTimeoutError(f"{name} gave no answer within {timeout:g} s")
    if "error" in answer:
        error = answer["error"]
        if isinstance(error, Exception):
            raise error
        raise ToolError(f"{name} raised {type(error).__name__}: {error}") from None
    return answer["result"]
