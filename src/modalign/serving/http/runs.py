"""The answers of one HTTP request in the engine: submitted, awaited, cancelled together.

Events come on the engine's thread. They are handed to the event loop in bundles: one wake-up for all that
a step of the engine brought, and not one for every token of every client.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from modalign.errors import ModalignError
from modalign.serving.http.metrics import Metrics
from modalign.serving.requests import (
    Delta,
    DrainingError,
    Engine,
    Event,
    Finished,
    FinishReason,
    Handle,
    Listener,
    Prompt,
    QueueFullError,
    Sampling,
    Started,
)


class Relay:
    """Hands events from any thread to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Run, int, Event]] = deque()
        self._called = False

    def put(self, run: Run, choice: int, event: Event, more: bool = False) -> None:
        """Take an event, from any thread; with ``more`` another follows, which wakes the loop."""
        self._events.append((run, choice, event))
        # Appended before it is looked at: a drain that is due will see it.
        if not more and not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._called = False
        while self._events:
            run, choice, event = self._events.popleft()
            run.take(choice, event)


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted."""

    prompt: Prompt
    sampling: Sampling


@dataclass
class _Choice:
    """How far one answer is; times in seconds of the monotonic clock."""

    handle: Handle | None = None
    asked: float = 0.0
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    cached: int = 0
    done: bool = False


class Run:
    """All answers of one request.

    What the engine has no place for waits here until one of this request's own answers is done.

    Args:
        engine: makes the answers.
        relay: brings its events.
        asks: what is wanted, in the order of the answer's choices.
        metrics: told of times.
    """

    def __init__(self, engine: Engine, relay: Relay, asks: Sequence[Ask], metrics: Metrics) -> None:
        self._engine, self._relay, self._metrics = engine, relay, metrics
        self._asks = list(asks)
        self._choices = [_Choice() for _ in asks]
        self._pending = deque(range(len(asks)))
        self._events: list[tuple[int, Event]] = []
        self._came = asyncio.Event()
        self._cancelled = False
        self.open = len(asks)

    def start(self) -> None:
        """Submit what the engine takes now.

        Raises:
            QueueFullError, DrainingError, PromptError: it does not even take the first.
        """
        try:
            self._submit()
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> list[tuple[int, Event]]:
        """Wait for events, (choice, event) in their order; all have been given when ``open`` is 0."""
        await self._came.wait()
        self._came.clear()
        events, self._events = self._events, []
        # Counted here and not where they come: what has come may not have been given yet.
        self.open -= sum(isinstance(event, Finished) for _, event in events)
        return events

    def cancel(self) -> None:
        """Free every place that is still taken."""
        self._cancelled = True
        self._pending.clear()
        for choice in self._choices:
            if choice.handle is not None and not choice.done:
                choice.handle.cancel()

    @property
    def new_tokens(self) -> int:
        """Tokens made so far, of all answers."""
        return sum(choice.tokens for choice in self._choices)

    def cached(self, choice: int) -> int:
        """Prompt positions of an answer that were known already."""
        return self._choices[choice].cached

    def take(self, number: int, event: Event) -> None:
        """Take an event, on the event loop."""
        choice = self._choices[number]
        self._events.append((number, event))
        self._came.set()
        if isinstance(event, Delta):
            if event.count:
                choice.last = time.monotonic()
                choice.tokens += event.count
                if choice.first is None:
                    choice.first = choice.last
                    self._metrics.first_token.observe(choice.first - choice.asked)
        elif isinstance(event, Started):
            choice.cached = event.cached
        else:
            self._finish(choice)

    def _finish(self, choice: _Choice) -> None:
        choice.done = True
        if choice.first is not None and choice.tokens > 1:
            self._metrics.token.observe((choice.last - choice.first) / (choice.tokens - 1))
        self._submit_more()

    def _submit_more(self) -> None:
        """Submit what waited for a place; a queue that others filled meanwhile is asked again."""
        try:
            self._submit()
        except QueueFullError as error:
            asyncio.get_running_loop().call_later(error.retry_after, self._submit_more)
        except ModalignError as error:  # the engine stopped taking requests half-way
            reason: FinishReason = "cancelled" if isinstance(error, DrainingError) else "error"
            refused = list(self._pending)
            self._pending.clear()
            for number in refused:
                self.take(number, Finished(reason, str(error)))

    def _submit(self) -> None:
        while self._pending and not self._cancelled:
            number = self._pending[0]
            ask, choice = self._asks[number], self._choices[number]
            choice.asked = choice.asked or time.monotonic()
            try:
                choice.handle = self._engine.submit(
                    ask.prompt, ask.sampling, self._listener(number)
                )
            except QueueFullError:
                if not any(other.handle and not other.done for other in self._choices):
                    raise
                return
            self._pending.popleft()

    def _listener(self, number: int) -> Listener:
        return partial(self._relay.put, self, number)
