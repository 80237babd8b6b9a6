"""Events between the engine's thread and the event loop: none is lost, whenever they come."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from modalign.serving.http.answering import Answer, Work
from modalign.serving.http.completions import CompletionShape
from modalign.serving.http.metrics import Metrics
from modalign.serving.http.runs import Ask, Relay, Run
from modalign.serving.requests import (
    Delta,
    DrainingError,
    EngineState,
    Event,
    Finished,
    Listener,
    Prompt,
    QueueFullError,
    Sampling,
    Started,
)

EVENTS: tuple[Event, ...] = (Started(), Delta("a", (), 1), Delta("b", (), 1), Finished("stop"))


class Held:
    """An engine whose listeners the test calls itself; ``places`` requests fit."""

    def __init__(self, places: int = 9) -> None:
        self.places = places
        self.listeners: list[Listener] = []
        self.cancelled: list[int] = []
        self.draining = False

    def submit(
        self, prompt: Prompt, sampling: Sampling, listener: Listener, client: str = ""
    ) -> Any:
        if self.draining:
            raise DrainingError("ending")
        if not self.places:
            raise QueueFullError("full", retry_after=0.001)
        self.places -= 1
        self.listeners.append(listener)
        return Handle(self, len(self.listeners) - 1)


class Handle:
    def __init__(self, engine: Held, number: int) -> None:
        self.engine, self.number = engine, number

    def cancel(self) -> None:
        self.engine.cancelled.append(self.number)


def run_of(engine: Any, count: int = 1) -> Run:
    asks = [Ask(Prompt((1,)), Sampling())] * count
    relay = Relay(asyncio.get_running_loop())
    return Run(engine, relay, asks, Metrics(EngineState))


def tell(listener: Listener, events: Sequence[Event] = EVENTS) -> None:
    """As an engine does: from another thread."""
    thread = threading.Thread(target=lambda: [listener(event) for event in events])
    thread.start()
    thread.join()


async def settle() -> None:
    """Let everything that is due on the event loop happen."""
    for _ in range(5):
        await asyncio.sleep(0)


async def never() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_done_before_anybody_looked(stream: bool) -> None:
    async def act() -> bytes:
        engine = Held()
        run = run_of(engine)
        run.start()
        tell(engine.listeners[0])
        await settle()
        return await sent(run, stream)

    body = asyncio.run(act())
    assert texts(body, stream) == "ab"


def test_an_answer_that_ends_while_its_beginning_is_sent() -> None:
    async def act() -> bytes:
        engine = Held()
        run = run_of(engine)
        run.start()
        tell(engine.listeners[0], EVENTS[:2])

        async def meanwhile() -> None:
            if len(engine.listeners) == 1:
                tell(engine.listeners.pop(), EVENTS[2:])
            await settle()

        return await sent(run, True, meanwhile)

    assert texts(asyncio.run(act()), True) == "ab"


def test_the_loop_is_woken_by_the_last_of_what_is_told_together() -> None:
    async def act() -> tuple[int, int]:
        engine = Held()
        run = run_of(engine)
        run.start()
        (listener,) = engine.listeners
        listener(Started(), more=True)
        listener(Delta("a", (), 1), more=True)
        await settle()
        before = run.new_tokens
        listener(Delta("b", (), 1))
        await settle()
        return before, run.new_tokens

    assert asyncio.run(act()) == (0, 2)


async def sent(run: Run, stream: bool, meanwhile: Any = settle) -> bytes:
    """The body of an answer."""
    shape = CompletionShape("m", 1, None, None, False)
    work = Work([Prompt((1,))], [Ask(Prompt((1,)), Sampling())], shape, stream)
    body = bytearray()
    left = []

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))
        await meanwhile()

    answer = Answer(work, run, 5.0, lambda: left.append(1))
    await asyncio.wait_for(answer({"type": "http"}, never, send), 5)
    assert left == [1]
    return bytes(body)


def texts(body: bytes, stream: bool) -> str:
    if not stream:
        return str(json.loads(body)["choices"][0]["text"])
    lines = [line[6:] for line in body.decode().splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line)["choices"][0] for line in lines]
    assert chunks[-1]["finish_reason"] == "stop"
    return "".join(chunk["text"] for chunk in chunks)


def test_what_finds_no_place_waits_for_its_own_and_for_others() -> None:
    """A queue that others filled meanwhile is asked again."""

    async def act() -> list[int]:
        engine = Held(places=1)
        run = run_of(engine, 3)
        run.start()
        done: list[int] = []
        while run.open:
            while not engine.listeners:  # the place was given to others: it is asked for again
                engine.places = 1
                await asyncio.sleep(0.001)
            tell(engine.listeners.pop())
            await settle()
            done += [n for n, event in await run.events() if isinstance(event, Finished)]
        return done

    assert asyncio.run(asyncio.wait_for(act(), 10)) == [0, 1, 2]


def test_an_engine_that_stops_taking_requests_half_way() -> None:
    async def act() -> list[tuple[int, Event]]:
        engine = Held(places=1)
        run = run_of(engine, 300)
        run.start()
        engine.draining = True
        tell(engine.listeners[0])
        await settle()
        events = await run.events()
        assert run.open == 0
        return events

    ends = [(n, event) for n, event in asyncio.run(act()) if isinstance(event, Finished)]
    assert [n for n, _ in ends] == list(range(300))
    assert {event.reason for _, event in ends[1:]} == {"cancelled"}


def test_a_full_queue_is_told_at_once() -> None:
    async def act() -> None:
        with pytest.raises(QueueFullError):
            run_of(Held(places=0)).start()

    asyncio.run(act())


def test_nothing_is_submitted_for_a_client_that_left() -> None:
    async def act() -> Held:
        engine = Held(places=1)
        run = run_of(engine, 3)
        run.start()
        run.cancel()
        engine.places = 5
        tell(engine.listeners[0], (Finished("cancelled"),))
        await settle()
        return engine

    engine = asyncio.run(act())
    assert (len(engine.listeners), engine.cancelled) == (1, [0])


def test_an_event_after_the_loop_is_closed_is_let_go() -> None:
    async def act() -> Held:
        engine = Held()
        run_of(engine).start()
        return engine

    tell(asyncio.run(act()).listeners[0])
