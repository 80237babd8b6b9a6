"""The parent's side of a worker process: ask with a deadline, kill what does not answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from modalign.tools.base import ToolDiedError, ToolTimeoutError

START_SECONDS = 120.0  # imports may be slow: torch alone takes several
_BYTES_PER_CHARACTER = 12  # a character outside the BMP as two JSON escapes


class WorkerProcess:
    """One process running one callable (see :mod:`modalign.tools.worker`).

    Args:
        target: import path of the callable.
        limit: characters of a result.

    Attributes:
        description: what the callable says of itself, or ``{"error": ...}``.

    Raises:
        ToolDiedError, ToolTimeoutError: the process did not come up.
    """

    def __init__(self, target: str, limit: int) -> None:
        self._limit = limit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "modalign.tools.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what it starts is killed with it
        )
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.kill = weakref.finalize(self, _end, self._process, self._requests, os.getpid())
        threading.Thread(
            target=_converse,
            args=(self._process, self._requests, self._answers, self._longest()),
            daemon=True,
        ).start()
        self.description = self.ask({"target": target}, START_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.kill.alive and self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and wait for its answer; a process that gives none is killed.

        Raises:
            ToolTimeoutError: nothing within ``timeout`` seconds.
            ToolDiedError: the process ended, or broke off in its answer.
        """
        self._requests.put(json.dumps({**request, "limit": self._limit}).encode() + b"\n")
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise ToolTimeoutError(
                f"no answer within {timeout:g} s; its process was ended"
            ) from None
        if not line.endswith(b"\n"):
            self.kill()
            raise ToolDiedError(f"its process ended ({_reason(self._process.returncode)})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _longest(self) -> int:
        return _BYTES_PER_CHARACTER * self._limit + 2**20


def _converse(
    process: subprocess.Popen[bytes],
    requests: queue.SimpleQueue[bytes | None],
    answers: queue.SimpleQueue[bytes],
    longest: int,
) -> None:
    """Write and read in a thread of its own: a full pipe must not hold up who waits for the deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    while (request := requests.get()) is not None:
        line = b""
        with suppress(OSError, ValueError):
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline(longest)
        answers.put(line)


def _end(
    process: subprocess.Popen[bytes], requests: queue.SimpleQueue[bytes | None], owner: int
) -> None:
    if os.getpid() != owner:  # a forked copy of the owner is going away, not the owner
        return
    requests.put(None)
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
