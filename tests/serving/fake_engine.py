"""An engine that answers as it is told, step by step where a test wants to look, and a server before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modalign.data.modalities import modality_names
from modalign.data.records import Media
from modalign.serving.http.app import Service
from modalign.serving.http.server import StoppableServer, accepted_hosts, address_of, listening
from modalign.serving.http.settings import Settings
from modalign.serving.requests import (
    Alternative,
    Delta,
    DrainingError,
    EngineState,
    Finished,
    Listener,
    Prompt,
    PromptError,
    QueueFullError,
    Sampling,
    Scored,
    Started,
    Turn,
)

MEDIUM_TOKENS = 4
Script = Callable[[Prompt, Sampling], Sequence[str]]


def scored(text: str, sampling: Sampling, logprob: float | None = -0.5) -> Scored:
    """A token whose alternatives are itself and less likely ones."""
    top: list[tuple[str, float]] = [
        (text, logprob or 0.0),
        ("other", -2.0),
        ("never", -float("inf")),
    ]
    count = 0 if logprob is None else sampling.logprobs or 0
    shown = tuple(Alternative(name, name.encode(), value) for name, value in top[:count])
    return Scored(len(text), text, text.encode(), logprob, shown, text)


@dataclass
class Row:
    """A request in the fake engine."""

    engine: FakeEngine
    prompt: Prompt
    sampling: Sampling
    listener: Listener
    pieces: list[str]
    client: str = ""
    made: int = 0
    cancelled: bool = False
    finished: bool = False

    def cancel(self) -> None:
        with self.engine.changed:
            self.cancelled = True
            self.engine.changed.notify_all()

    def finish(self, event: Finished) -> None:
        self.finished = True
        self.listener(event)

    def step(self) -> None:
        """The next token, on the engine's thread."""
        if self.cancelled:
            self.finish(Finished("cancelled"))
            return
        if not self.made:
            asked = self.sampling.prompt_logprobs
            texts = [chr(token) for token in self.prompt.ids] if asked else []
            tokens = [
                scored(text, self.sampling, None if not place else -1.0)
                for place, text in enumerate(texts)
            ]
            self.listener(Started(tuple(tokens), cached=len(self.prompt.ids) // 2))
        if self.made == self.sampling.max_tokens:
            self.finish(Finished("length"))
        elif self.made == len(self.pieces):
            self.finish(Finished("stop"))
        elif self.pieces[self.made] == "ERROR":
            self.finish(Finished("error", "a secret path: /home/somebody"))
        else:
            text = self.pieces[self.made]
            tokens = [scored(text, self.sampling)] if self.sampling.logprobs is not None else []
            self.made += 1
            self.listener(Delta(text, tuple(tokens), 1))


@dataclass
class FakeEngine:
    """Fulfils ``modalign.serving.requests.Engine``; a token is a piece of the script.

    With ``steps`` a number, it makes so many tokens for each row and then waits for ``allow``.
    """

    script: Script = lambda prompt, sampling: ("Hello", " there", "!")
    modalities: tuple[str, ...] = modality_names()
    signals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_length: int = 4096
    takes_tools: bool = True
    max_batch: int = 4
    max_waiting: int = 8
    steps: int | None = None
    turns: list[Sequence[Turn]] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    submitted: list[Row] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.running: list[Row] = []
        self.waiting: list[Row] = []
        self.draining = self.closed = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    # --- the protocol

    def chat_prompt(
        self, messages: Sequence[Turn], tools: Sequence[Mapping[str, object]] | None = None
    ) -> Prompt:
        self.threads.add(threading.current_thread().name)
        self.turns.append(messages)
        self.tools.append(tools)
        ids: list[int] = []
        media: dict[str, int] = {}
        for turn in messages:
            content: Any = turn["content"] if isinstance(turn, Mapping) else turn.parts
            for part in content:
                if isinstance(part, Media):
                    ids += [0] * MEDIUM_TOKENS
                    media[part.modality] = media.get(part.modality, 0) + MEDIUM_TOKENS
                else:
                    ids += map(ord, part)
        return Prompt(tuple(ids) or (ord("\n"),), media_tokens=media)

    def text_prompt(self, text: str | Sequence[int]) -> Prompt:
        self.threads.add(threading.current_thread().name)
        ids = tuple(map(ord, text)) if isinstance(text, str) else tuple(text)
        if not ids:
            raise PromptError("the prompt has no tokens")
        if any(not isinstance(text, str) and token > 255 for token in ids):
            raise PromptError("a token id does not exist: this model has 256")
        return Prompt(ids)

    def submit(
        self, prompt: Prompt, sampling: Sampling, listener: Listener, client: str = ""
    ) -> Row:
        with self.changed:
            if self.draining or self.closed:
                raise DrainingError("shutting down")
            if len(self.running) + len(self.waiting) >= self.max_batch + self.max_waiting:
                raise QueueFullError("the queue is full", retry_after=2.5)
            row = Row(self, prompt, sampling, listener, list(self.script(prompt, sampling)), client)
            self.submitted.append(row)
            self.waiting.append(row)
            self._join()
            self.changed.notify_all()
        return row

    def state(self) -> EngineState:
        return EngineState(
            running=len(self.running),
            waiting=len(self.waiting),
            draining=self.draining,
            prompt_tokens=sum(len(row.prompt.ids) for row in self.submitted),
            new_tokens=sum(row.made for row in self.submitted),
            media_hits=3,
            media_misses=2,
            max_batch=self.max_batch,
        )

    def drain(self, timeout: float) -> bool:
        with self.changed:
            self.draining = True
            return self.changed.wait_for(lambda: not (self.running or self.waiting), timeout)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    # --- for tests

    def allow(self, steps: int | None) -> None:
        """Let it make so many tokens more for each row; None for all."""
        with self.changed:
            self.steps = None if steps is None else (self.steps or 0) + steps
            self.changed.notify_all()

    def wait_for(self, met: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until the engine's state is as expected."""
        with self.changed:
            assert self.changed.wait_for(met, seconds)

    def _join(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            self.running.append(self.waiting.pop(0))

    def _due(self) -> list[Row]:
        return [
            row
            for row in self.running
            if row.cancelled or self.steps is None or row.made < self.steps
        ]

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or bool(self._due()))
                due = self._due()
                if self.closed:
                    break
            for row in due:
                row.step()
            with self.changed:
                self.running = [row for row in self.running if not row.finished]
                self._join()
                self.changed.notify_all()
        for row in [*self.running, *self.waiting]:
            row.finish(Finished("cancelled"))


@dataclass
class Served:
    """A server that runs in this process."""

    url: str
    service: Service
    server: StoppableServer
    thread: threading.Thread

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def served(
    engine: Any, settings: Settings | None = None, drain_seconds: float = 5.0
) -> Iterator[Served]:
    """A server before an engine, on a free port of 127.0.0.1."""
    listener = listening("127.0.0.1", 0)
    settings = settings or Settings("tiny", hosts=accepted_hosts("127.0.0.1"))
    service = Service(engine, settings)
    ready = threading.Event()
    server = StoppableServer(service, ready.set, drain_seconds=drain_seconds)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    assert ready.wait(10)
    running = Served(address_of(listener, "127.0.0.1"), service, server, thread)
    try:
        yield running
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)
        listener.close()
        engine.close()
        service.close()
