"""The answers of one HTTP request in the engine: submitted, awaited, cancelled together.

Events come from the engine's thread and are handed to the event loop in bundles: one wake-up per step of the
engine instead of one per token and client.
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

MOST = 32  # answers of one request in the engine at a time: others need places, too


class Relay:
    """Hands events from any thread to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Run, int, Event]] = deque()
        self._called = False

    def put(self, run: Run, choice: int, event: Event, more: bool = False) -> None:
        """Add an event, from any thread; with ``more`` another follows, which wakes the loop."""
        self._events.append((run, choice, event))
        # Appended before the check, so that a scheduled drain sees it.
        if not more and not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._called = False
        while self._events:
            run, choice, event = self._events.popleft()
            run.take(choice, event)


@dataclass(frozen=True)
class Ask:
    """One requested answer."""

    prompt: Prompt
    sampling: Sampling


@dataclass
class _Choice:
    """The state of one answer; times in seconds of the monotonic clock."""

    handle: Handle | None = None
    asked: float = 0.0
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    cached: int = 0
    done: bool = False


class Run:
    """All answers of one request.

    Answers without a slot in the engine wait here until another of this request's answers is done.

    Args:
        engine: makes the answers.
        relay: delivers its events.
        asks: the requested answers, in the order of the response's choices.
        metrics: records times.
        client: who asks; clients take turns in the engine.
    """

    def __init__(
        self,
        engine: Engine,
        relay: Relay,
        asks: Sequence[Ask],
        metrics: Metrics,
        client: str = "",
    ) -> None:
        self._engine, self._relay, self._metrics = engine, relay, metrics
        self._client = client
        self._asks = list(asks)
        self._choices = [_Choice() for _ in asks]
        self._pending = deque(range(len(asks)))
        self._events: list[tuple[int, Event]] = []
        self._came = asyncio.Event()
        self._cancelled = False
        self.open = len(asks)

    def start(self) -> None:
        """Submit as many answers as the engine accepts now.

        Raises:
            QueueFullError, DrainingError, PromptError: it does not even accept the first.
        """
        try:
            self._submit()
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> list[tuple[int, Event]]:
        """Wait for events, (choice, event) in order; all have been returned when ``open`` is 0."""
        await self._came.wait()
        self._came.clear()
        events, self._events = self._events, []
        # Counted on delivery, because received events may not have been returned yet.
        self.open -= sum(isinstance(event, Finished) for _, event in events)
        return events

    def cancel(self) -> None:
        """Free every slot that is still in use."""
        self._cancelled = True
        self._pending.clear()
        for choice in self._choices:
            if choice.handle is not None and not choice.done:
                choice.handle.cancel()

    @property
    def new_tokens(self) -> int:
        """Count the tokens generated so far, over all answers."""
        return sum(choice.tokens for choice in self._choices)

    def cached(self, choice: int) -> int:
        """Return an answer's cached prompt positions."""
        return self._choices[choice].cached

    def take(self, number: int, event: Event) -> None:
        """Process an event, on the event loop."""
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
        """Submit waiting answers; if others have filled the queue, try again later."""
        try:
            self._submit()
        except QueueFullError as error:
            asyncio.get_running_loop().call_later(error.retry_after, self._submit_more)
        except ModalignError as error:  # the engine stopped accepting requests in between
            reason: FinishReason = "cancelled" if isinstance(error, DrainingError) else "error"
            refused = list(self._pending)
            self._pending.clear()
            for number in refused:
                self.take(number, Finished(reason, str(error)))

    def _submit(self) -> None:
        while self._pending and not self._cancelled:
            if sum(each.handle is not None and not each.done for each in self._choices) >= MOST:
                return
            number = self._pending[0]
            ask, choice = self._asks[number], self._choices[number]
            choice.asked = choice.asked or time.monotonic()
            try:
                choice.handle = self._engine.submit(
                    ask.prompt, ask.sampling, self._listener(number), self._client
                )
            except QueueFullError:
                if not any(other.handle and not other.done for other in self._choices):
                    raise
                return
            self._pending.popleft()

    def _listener(self, number: int) -> Listener:
        return partial(self._relay.put, self, number)
