"""A language model answers an instruction with text or with calls to generators (ModaVerse, arXiv 2401.06395).

Calls take the way of all tool calls: the chat template's own format, or an OpenAI-compatible server's ``tools``.
They are parsed strictly, several are allowed, and errors go back to the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from modalign.endpoints import Chat, Reply, ToolCall
from modalign.endpoints.call_grammar import OPEN
from modalign.strict_json import loads
from modalign.tools.base import ToolArgumentError, ToolError
from modalign.tools.generators import Generator, Made
from modalign.tools.planning.answer import Transcript

MOST = 4  # calls of one reply


@dataclass(frozen=True)
class Called:
    """A call and its outcome: what it made, or why it did not."""

    name: str
    arguments: str
    made: Made | None = None
    problem: str = ""
    valid: bool = True


@dataclass(frozen=True)
class Transformed:
    """The answer to an instruction.

    Attributes:
        text: of the model, "" if it only calls.
        calls: of its last reply to it that had any, and those of the first that went well.
        first: the calls of its first reply.
        repaired: whether errors went back to the model.
    """

    text: str
    calls: tuple[Called, ...] = ()
    first: tuple[Called, ...] = ()
    repaired: bool = False

    @property
    def made(self) -> list[Made]:
        """Return what was made, in order."""
        return [call.made for call in self.calls if call.made is not None]


@dataclass
class Generating:
    """Answers by text and by generators.

    Args:
        generators: that may be called.
        chat: the language model.
        settings: of each reply: max_tokens, temperature, ...
        repair: whether errors go back to the model, once.
    """

    generators: Sequence[Generator]
    chat: Chat
    _: KW_ONLY
    settings: dict[str, Any] = field(default_factory=dict)
    repair: bool = True

    def answer(self, instruction: str) -> Transformed:
        """Answer an instruction.

        Raises:
            UsageError: the language model is not reachable.
            ToolError: it gave no reply.
        """
        transcript = Transcript(self.chat, self.settings)
        messages: list[dict[str, Any]] = [{"role": "user", "content": instruction}]
        reply, called = self._asked(transcript, messages)
        good = [call for call in called if not call.problem]
        if len(good) == len(called) or not self.repair:
            return Transformed(reply.text, tuple(called), tuple(called))
        messages += _observed(reply, called)
        second, again = self._asked(transcript, messages)
        calls = (*good, *again) if again else tuple(called)
        text = second.text or reply.text
        return Transformed(text, calls, tuple(called), repaired=True)

    def _asked(
        self, transcript: Transcript, messages: Sequence[dict[str, Any]]
    ) -> tuple[Reply, list[Called]]:
        reply = transcript.ask(messages, [each.schema() for each in self.generators])
        if reply is None:
            raise ToolError(f"the model gave no reply ({transcript.steps[-1].content['message']})")
        calls = reply.calls
        if not calls and OPEN in reply.text:  # a server shows what it cannot parse as text
            calls, reply = (ToolCall("", reply.text, "call_0"),), replace(reply, text="")
        return replace(reply, calls=calls), [
            carried_out(self.generators, call) if number < MOST else _too_many(call)
            for number, call in enumerate(calls)
        ]


def carried_out(generators: Sequence[Generator], call: ToolCall) -> Called:
    """Parse a call strictly and carry it out; what is wrong with it is part of the outcome."""
    here = (call.name, call.arguments)
    try:
        return Called(*here, made=_generator(generators, call).make(_arguments(call)))
    except ToolArgumentError as error:
        return Called(*here, problem=str(error), valid=False)
    except ToolError as error:
        return Called(*here, problem=str(error))


def _generator(generators: Sequence[Generator], call: ToolCall) -> Generator:
    if not call.name:
        raise ToolArgumentError("the call is not JSON with a name")
    for each in generators:
        if each.name == call.name:
            return each
    there = ", ".join(each.name for each in generators)
    raise ToolArgumentError(f"no generator {call.name!r}; there are {there}")


def _arguments(call: ToolCall) -> dict[str, Any]:
    try:
        values = loads(call.arguments)
    except ValueError as error:
        raise ToolArgumentError(f"the arguments are not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ToolArgumentError("the arguments are not a JSON object")
    return values


def _too_many(call: ToolCall) -> Called:
    return Called(
        call.name, call.arguments, problem=f"not called: at most {MOST} calls at once", valid=False
    )


def _observed(reply: Reply, called: Sequence[Called]) -> list[dict[str, Any]]:
    """Return the model's turn and an observation of each of its calls."""
    sound = tuple(
        ToolCall(each.name or "malformed", each.arguments if each.valid else "{}", call.id)
        for each, call in zip(called, reply.calls, strict=True)
    )
    turns = [replace(reply, calls=sound).as_message()]
    for each, call in zip(called, sound, strict=True):
        seen = (
            f"error: {each.problem}"
            if each.problem
            else f"made: {each.made.shows if each.made else ''}"
        )
        turns.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": seen})
    return turns
