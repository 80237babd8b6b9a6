"""Rate limiting: requests per minute, concurrent requests, and retries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Time and waiting; tests have their own."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Retries:
    """When and how often a failed request is retried.

    Attributes:
        attempts: maximum attempts, including the first.
        first: seconds before the second attempt; they double each time (with jitter, so that many
            clients do not retry at the same time).
        longest: maximum wait; if a server asks for more, the request fails.
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 120.0

    def wait(self, failed: int, asked: float | None) -> float:
        """Return seconds to wait after ``failed`` attempts; the server's own wish takes precedence."""
        if asked is not None:
            return asked
        backoff = min(self.first * 2.0 ** (failed - 1), self.longest)
        return backoff * random.uniform(0.5, 1.0)


class Pace:
    """Spaces requests evenly and limits how many run at a time.

    Args:
        per_minute: requests per minute; None for no limit.
        concurrency: requests that run at a time.
        clock: time; the machine's by default.
    """

    def __init__(
        self, per_minute: float | None = None, concurrency: int = 4, clock: Clock | None = None
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.concurrency = concurrency
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._places = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._next = 0.0

    def hold(self, seconds: float) -> None:
        """Delay all requests: a server that asks one client to wait means all."""
        with self._lock:
            self._next = max(self._next, self.clock.now() + seconds)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold a slot among the running requests."""
        with self._places:
            with self._lock:
                now = self.clock.now()
                start = max(now, self._next)
                self._next = start + self._interval
            if start > now:
                self.clock.sleep(start - now)
            yield
