"""A listener that keeps what it hears, and what an engine said in the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from modalign.serving.requests import Delta, Event, Finished, Prompt, Sampling, Started


class Heard:
    """Everything one request was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()
        self.begun = threading.Event()

    def __call__(self, event: Event, /, more: bool = False) -> None:
        self.events.append(event)
        if isinstance(event, Delta):
            self.begun.set()
        if isinstance(event, Finished):
            self.begun.set()
            self.done.set()

    def wait(self) -> Heard:
        assert self.done.wait(60), "the engine did not answer"
        assert sum(isinstance(event, Finished) for event in self.events) == 1
        return self

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def count(self) -> int:
        return sum(event.count for event in self.events if isinstance(event, Delta))

    @property
    def tokens(self) -> list[Any]:
        deltas = [event for event in self.events if isinstance(event, Delta)]
        return [token for delta in deltas for token in delta.tokens]

    @property
    def started(self) -> Started:
        return next(event for event in self.events if isinstance(event, Started))

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last


def ask(engine: Any, prompt: Prompt, **sampling: Any) -> Heard:
    """Submit and go on."""
    heard = Heard()
    engine.submit(prompt, Sampling(**sampling), heard)
    return heard


def ask_all(engine: Any, prompts: Sequence[Prompt], **sampling: Any) -> list[Heard]:
    """Submit all, then wait for all."""
    heard = [ask(engine, prompt, **sampling) for prompt in prompts]
    return [each.wait() for each in heard]
