"""The parent's side of a worker process: send requests with a deadline, kill what does not answer."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from modalign.tools.base import ToolDiedError, ToolTimeoutError
from modalign.tools.channel import Channel, ChannelError, DeadlineError

START_SECONDS = 120.0  # imports may be slow: torch alone takes several
_BYTES_PER_CHARACTER = 12  # a character outside the BMP as two JSON escapes


class Child:
    """A process of ``python -m MODULE``, spoken to over its input and output; killed when nobody holds it.

    Args:
        module: that it runs.
        limit: bytes of a line from it.
        arguments: of the module.
        environment: variables that it has besides this process's own.

    Attributes:
        channel: the conversation with it.
        kill: end it and what it started.
    """

    def __init__(
        self,
        module: str,
        limit: int,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what it starts is killed with it
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pipes = self._process.stdout.fileno(), self._process.stdin.fileno()
        self.channel = Channel(*pipes, limit)
        self.kill = weakref.finalize(self, _end, self._process, os.getpid())

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.kill.alive and self._process.poll() is None

    @property
    def seconds(self) -> float:
        """CPU time that it used; infinite where the system does not say."""
        try:
            status = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return math.inf
        user, system = status.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def cause(self) -> str:
        """Why it ended, once it has: a signal's name or an exit code."""
        return _reason(self._process.returncode)


class WorkerProcess:
    """One process running one callable (see :mod:`modalign.tools.worker`).

    Args:
        target: import path of the callable.
        limit: characters of a result.

    Attributes:
        description: the callable's own description, or ``{"error": ...}``.

    Raises:
        ToolDiedError, ToolTimeoutError: the process did not start.
    """

    def __init__(self, target: str, limit: int) -> None:
        self._limit = limit
        self._child = Child("modalign.tools.worker", _BYTES_PER_CHARACTER * limit + 2**20)
        self.kill = self._child.kill
        self.description = self.ask({"target": target}, START_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._child.alive

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and wait for its answer; a process that gives none is killed.

        Raises:
            ToolTimeoutError: nothing within ``timeout`` seconds.
            ToolDiedError: the process ended, possibly within its answer.
        """
        deadline = time.monotonic() + timeout
        try:
            self._child.channel.send({**request, "limit": self._limit}, deadline)
            return self._child.channel.receive(deadline)
        except DeadlineError:
            self.kill()
            late = f"no answer within {timeout:g} s; its process was ended"
            raise ToolTimeoutError(late) from None
        except ChannelError:
            self.kill()
            raise ToolDiedError(f"its process ended ({self._child.cause})") from None


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the owner is exiting, not the owner
        return
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
