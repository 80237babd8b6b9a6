"""Run one program in a process of its own, and answer its tool calls."""

from __future__ import annotations

import json
import keyword
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from modalign.errors import UsageError
from modalign.tools.channel import Channel, ChannelError, DeadlineError, EndedError
from modalign.tools.sandbox.fence import (
    NO_FENCE,
    Fence,
    SandboxError,
    bubblewrap,
    namespaces,
    restricted_python,
)
from modalign.tools.sandbox.limits import Limits

START_SECONDS = 30.0  # for the process to be ready, on a busy machine
ANSWER = "answer"  # the variable that a program sets
MESSAGE = 1000  # characters of an error's message


class ToolFailure(Exception):  # noqa: N818 - what a tool answers, not a defect
    """What a function raises for its program to see."""


@dataclass(frozen=True)
class Function:
    """What a program may call.

    Attributes:
        parameters: names of its arguments, in the order of positional ones.
        call: given the arguments by name: any JSON, from an untrusted program; returns JSON, or raises
            :class:`ToolFailure`.
    """

    parameters: tuple[str, ...]
    call: Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """A tool call that a program made.

    Attributes:
        name: of the function.
        arguments: as the program gave them.
        seconds: that it took.
        error: why there was no result, if so.
    """

    name: str
    arguments: dict[str, Any]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Ran:
    """The result of a program.

    Attributes:
        answer: the text of its ``answer``, or of its last line's value (JSON where it is not text).
        kind: None where there is an answer; else ``syntax``, ``raised``, ``memory``, ``no-answer``,
            ``time``, ``killed`` (CPU time, or a crash), ``protocol``.
        message: what went wrong, with the program's line where it is known.
        output: what it printed.
        calls: the tool calls it made.
        seconds: of wall-clock time, tools included.
        fence: name of the fence it ran in.
    """

    answer: str | None
    kind: str | None
    message: str
    output: str
    calls: tuple[Call, ...]
    seconds: float
    fence: str


def run_program(
    source: str,
    functions: Mapping[str, Function],
    limits: Limits | None = None,
    *,
    fence: Fence | None = None,
    unsafe: bool = False,
    restricted: bool = True,
) -> Ran:
    """Run a program that nobody trusts.

    Args:
        source: Python; its ``answer``, or the value of its last line, is the result.
        functions: what it may call, by name.
        limits: of time, memory, calls and text.
        fence: the kernel's; by default the best there is.
        unsafe: run without a fence where the machine offers none.
        restricted: hold the program by RestrictedPython as well. Without it plain Python is held by the
            fence alone, which must then be there.

    Raises:
        UsageError: no fence, and ``unsafe`` was not given.
        SandboxError: the process could not be started.
    """
    limits = limits or Limits()
    fence = fence or fence_for(unsafe)
    if not restricted and not fence.strict:
        raise UsageError("plain Python is run inside a kernel fence only")
    if wrong := [name for name in functions if not _callable_name(name)]:
        raise UsageError(
            f"a program cannot call {wrong[0]!r}: the name is reserved, or begins with _"
        )
    began = time.monotonic()
    if len(source) > limits.source:
        message = f"the program has {len(source):,} characters; {limits.source:,} are allowed"
        return Ran(None, "syntax", message, "", (), 0.0, fence.name)
    run = _Run(functions, limits)
    process = _started(fence, limits)
    try:
        outcome = run.conversation(process, {"source": source, "restricted": restricted})
    finally:
        _kill(process)
        _close(process)
    answer, message = outcome.get("answer"), outcome.get("message", "")
    return Ran(
        answer=None if answer is None else answer[: limits.output],
        kind=outcome.get("kind"),
        message=message[:MESSAGE],
        output=outcome.get("output", "")[: limits.output],
        calls=tuple(run.calls),
        seconds=time.monotonic() - began,
        fence=fence.name,
    )


def fence_for(unsafe: bool = False) -> Fence:
    """Return the fence of this machine, tried once per process.

    Args:
        unsafe: run without a fence where the machine offers none.

    Raises:
        UsageError: there is none, and that was not allowed; or RestrictedPython is missing.
    """
    restricted_python()
    found, reasons = _find()
    if found is not None:
        return found
    if unsafe:
        return NO_FENCE
    raise UsageError(
        "programs are not run here, since the kernel cannot hold them: "
        + "; ".join(reasons)
        + ". Install bubblewrap, allow user namespaces, or give --unsafe-code (unsafe=True) if whoever"
        " writes to the model may run programs as you"
    )


@cache
def _find() -> tuple[Fence | None, tuple[str, ...]]:
    reasons = []
    for make in (bubblewrap, namespaces):
        try:
            fence = make()
            if run_program("answer = 6 * 7", {}, fence=fence).answer == "42":
                return fence, ()
            reasons.append(f"{fence.name}: a program that multiplies did not end")
        except SandboxError as error:
            reasons.append(str(error))
    return None, tuple(reasons)


def _callable_name(name: str) -> bool:
    return name.isidentifier() and not (
        keyword.iskeyword(name) or name.startswith("_") or name == ANSWER
    )


def _started(fence: Fence, limits: Limits) -> subprocess.Popen[bytes]:
    settings = {
        "limits": limits.for_process(),
        "outside": dict(fence.outside),
        "strict": fence.strict,
    }
    # An interpreter may need this to find its own library; nothing else of the environment is passed on.
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        return subprocess.Popen(
            fence.arguments(json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=kept,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{fence.name}: {error}") from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group; inside new namespaces everything dies with its first process."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@dataclass
class _Run:
    functions: Mapping[str, Function]
    limits: Limits
    calls: list[Call] = field(default_factory=list)

    def conversation(
        self, process: subprocess.Popen[bytes], task: dict[str, Any]
    ) -> dict[str, Any]:
        """Hand over the task, answer calls, return what the program ended with."""
        assert process.stdin is not None
        assert process.stdout is not None
        channel = Channel(process.stdout.fileno(), process.stdin.fileno(), self.limits.message)
        self._await_readiness(channel, process)
        deadline = time.monotonic() + self.limits.seconds
        order = {name: list(function.parameters) for name, function in self.functions.items()}
        try:
            channel.send({**task, "tools": order}, deadline)
            while True:
                message = channel.receive(deadline)
                if "done" in message:
                    return _checked(message["done"])
                began = time.monotonic()
                reply = self._answer(message)
                deadline += time.monotonic() - began
                channel.send(reply, deadline)
        except DeadlineError:
            return _failed("time", f"stopped after {self.limits.seconds:g} seconds")
        except EndedError:
            return _failed("killed", self._cause(process))
        except ChannelError as error:
            return _failed("protocol", f"stopped for sending {error}")

    def _await_readiness(self, channel: Channel, process: subprocess.Popen[bytes]) -> None:
        """Wait until the process has confined itself.

        Raises:
            SandboxError: it did not, and why.
        """
        try:
            message = channel.receive(time.monotonic() + START_SECONDS)
        except ChannelError as error:
            _kill(process)
            assert process.stderr is not None
            said = process.stderr.read(MESSAGE).decode("utf-8", "replace").strip()
            raise SandboxError(said.splitlines()[-1] if said else str(error)) from None
        if "refused" in message:
            raise SandboxError(f"the fence does not stand: {message['refused']}")

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one call."""
        name, arguments = message.get("call"), message.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ChannelError("something that is not a call")
        if len(self.calls) >= self.limits.calls:
            raise ChannelError(f"more than {self.limits.calls} calls")
        began = time.monotonic()
        function = self.functions.get(name)
        reply: dict[str, Any]
        if function is None:
            reply = {"error": f"there is no {name[:100]!r}"}
        else:
            try:
                reply = {"result": function.call(arguments)}
            except ToolFailure as error:
                reply = {"error": str(error)}
        seconds = time.monotonic() - began
        self.calls.append(Call(name, arguments, seconds, reply.get("error")))
        return reply

    def _cause(self, process: subprocess.Popen[bytes]) -> str:
        """Why a process ended early; ``unshare`` before 2.40 hides whether a signal did it."""
        status = process.wait(timeout=5)
        return (
            f"ended without an answer (status {status}): the CPU time of {self.limits.cpu} s was used"
            " up, or the interpreter crashed"
        )


def _checked(outcome: Any) -> dict[str, Any]:
    """Return an outcome from a process that may say anything."""
    texts = ("answer", "kind", "message", "output")
    if not isinstance(outcome, dict) or not all(
        isinstance(outcome.get(name, ""), str) for name in texts
    ):
        raise ChannelError("an outcome that is not one")
    if ("answer" in outcome) == ("kind" in outcome):
        raise ChannelError("an outcome that is not one")
    return outcome


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"kind": kind, "message": message}
