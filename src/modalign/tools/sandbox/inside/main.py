"""The sandboxed process: confine, receive one program, run it, report the outcome, in lines of JSON.

It writes ``{"ready": true}`` or ``{"refused": why}`` and reads the task. For each tool call it writes
``{"call": name, "arguments": {...}}`` and reads ``{"result": ...}`` or ``{"error": ...}``. At the end it writes
``{"done": {...}}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from .confine import ConfinementError, confine
from .language import ANSWER, FINAL, NAME, compile_program, names_for

MESSAGE = 1000  # characters of an error's message


class ToolError(Exception):
    """A tool call without a result; programs may catch it."""


class Pipes:
    """The two pipes to the process that has the tools."""

    def __init__(self, received: BinaryIO, sent: BinaryIO) -> None:
        self.received, self.sent = received, sent

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line; half characters, which no file or terminal takes, as question marks."""
        text = json.dumps(message, allow_nan=False, ensure_ascii=False)
        self.sent.write(text.encode("utf-8", "replace") + b"\n")
        self.sent.flush()

    def receive(self) -> Any:
        """Read one line; exit if the other side is gone."""
        line = self.received.readline()
        if not line:
            os._exit(1)
        return json.loads(line)


class Printed:
    """Printed text, of bounded length."""

    def __init__(self, limit: int) -> None:
        self.parts: list[str] = []
        self.room = limit

    def write(self, text: str) -> None:
        """Keep as much as fits."""
        if self.room > 0:
            kept = str.__getitem__(
                text, slice(self.room)
            )  # may be a subclass defined by the program
            self.parts.append(kept)
            self.room -= len(kept)

    def text(self) -> str:
        """Return the text."""
        return "".join(self.parts)


def main() -> None:
    """Run one program."""
    settings = json.loads(sys.argv[-1])
    channel = _channel()
    try:
        confine(settings["limits"], settings["outside"], settings["strict"])
    except ConfinementError as error:
        channel.send({"refused": str(error)})
        return
    channel.send({"ready": True})
    task = channel.receive()
    printed = Printed(settings["limits"]["output"])
    outcome = _outcome(task, channel, printed)
    channel.send({"done": outcome | {"output": printed.text()}})


def _channel() -> Pipes:
    """Take stdin and stdout for the protocol; other output to them is discarded."""
    received, sent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return Pipes(received, sent)


def _outcome(task: dict[str, Any], channel: Pipes, printed: Printed) -> dict[str, Any]:
    """Return the answer of a program, or the kind and message of what ended it."""
    try:
        code = compile_program(task["source"], task["restricted"])
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return {"kind": "syntax", "message": _syntax_message(error)}
    functions = {name: _tool(name, order, channel) for name, order in task["tools"].items()}
    functions["ToolError"] = ToolError
    if task["restricted"]:
        names = names_for(printed.write, functions)
    else:
        names = {**functions, "print": lambda *values: printed.write(f"{values}\n")}
    failure: dict[str, Any] | None = None
    try:
        exec(code, names)
    except MemoryError:
        failure = {"kind": "memory", "message": "out of memory"}
    except BaseException as error:  # including SystemExit
        failure = {"kind": "raised", "message": _message(error)}
    if failure is None:
        return _answer(names)
    names.clear()
    return failure


def _answer(names: dict[str, Any]) -> dict[str, Any]:
    value = names.get(ANSWER, names.get(FINAL))
    if value is None:
        message = f"the program ended without setting `{ANSWER}`"
        return {"kind": "no-answer", "message": message}
    if isinstance(value, str):
        return {"answer": value}
    try:
        return {"answer": json.dumps(value, ensure_ascii=False, default=_plain)}
    except MemoryError:
        names.clear()
        return {"kind": "memory", "message": "out of memory"}
    except BaseException as error:  # the value's own methods may raise anything
        message = f"`{ANSWER}` is neither text nor JSON: {_said(error)}"
        return {"kind": "no-answer", "message": message[:MESSAGE]}


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    raise TypeError(f"a {type(value).__name__}")


def _syntax_message(error: BaseException) -> str:
    if not isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {_said(error)}"[:MESSAGE]
    where = f"line {error.lineno}: " if error.lineno else ""
    return f"{where}{error.msg}"[:MESSAGE]


def _message(error: BaseException) -> str:
    """``line 3: KeyError: 'x'``, the last line of the program that was running."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {_said(error)}"[:MESSAGE]


def _said(error: BaseException) -> str:
    """An error's message; its text may be endless, or raise an error itself."""
    try:
        return str.__str__(str(error))
    except BaseException as failure:
        return f"its message cannot be shown ({type(failure).__name__})"


def _tool(name: str, order: list[str], channel: Pipes) -> Callable[..., Any]:
    """Return a function for the program that calls the other process."""

    def call(*values: Any, **arguments: Any) -> Any:
        if len(values) > len(order):
            raise TypeError(f"{name} takes {', '.join(order) or 'no arguments'}")
        for key, value in zip(order, values, strict=False):
            if key in arguments:
                raise TypeError(f"{name}: {key} is given twice")
            arguments[key] = value
        channel.send({"call": name, "arguments": arguments})
        reply = channel.receive()
        if "error" in reply:
            raise ToolError(f"{name}: {reply['error']}")
        return reply["result"]

    return call
