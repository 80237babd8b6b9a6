"""One request inside the engine: what it has made, what it has told, and whether it is done."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modalign.serving.requests import (
    Delta,
    Finished,
    FinishReason,
    Listener,
    Prompt,
    Sampling,
    Scored,
    Started,
)
from modalign.serving.runners import Memory
from modalign.serving.sampling import Settled, draw, generator_of, scored
from modalign.serving.text import Decode, Detokenizer

_numbers = itertools.count()


@dataclass(eq=False)
class Row:
    """A request and its state.

    Attributes:
        made: ids so far.
        memory: what in-layer connectors go on reading.
        cancelled: its client has gone.
        finished: its last event was sent.
    """

    prompt: Prompt
    sampling: Sampling
    listener: Listener
    tokenizer: Any
    decode: Decode
    settled: Settled
    device: torch.device
    most: int  # tokens this request may make: its own limit, or what the model's length leaves
    alone: bool = False  # answered by `generate`, which applies the model's processors itself
    number: int = field(default_factory=lambda: next(_numbers))
    made: list[int] = field(default_factory=list)
    memory: Memory = field(default_factory=dict)
    cancelled: bool = False
    finished: bool = False

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.decode, self.sampling.stop)
        self._generator = generator_of(self.sampling, self.device)
        length = -1 if self.alone else len(self.prompt.ids)
        self._processors = self.settled.processors(length, self.device)
        self._told: list[Scored] = []
        self._count = 0

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the most likely one, and nothing else is asked."""
        greedy = self._generator is None and not self._processors
        return greedy and self.sampling.logprobs is None

    def cancel(self) -> None:
        """Free its place as soon as the running step ends."""
        self.cancelled = True

    def choose(self, logits: Tensor) -> int:
        """The next token from logits (V,), suppressed ids already out."""
        logits = logits.float()
        if self._processors:
            ids = torch.tensor([[*self.prompt.ids, *self.made]], device=logits.device)
            logits = self._processors(ids, logits[None])[0]
        own = self._generator
        token = int(logits.argmax()) if own is None else draw(logits, self.sampling, own)
        if self.sampling.logprobs is not None:
            known = torch.log_softmax(logits, dim=-1)
            self._told.append(scored(self.tokenizer, token, known, self.sampling.logprobs))
        return token

    def start(self, logits: Tensor | None, cached: int) -> None:
        """Tell that the prompt was read; with its log-probabilities from logits (T, V) where asked."""
        prompt: tuple[Scored, ...] = ()
        if logits is not None:
            known = torch.log_softmax(logits.float(), dim=-1)
            ids, most = self.prompt.ids, self.sampling.logprobs or 0
            prompt = (
                scored(self.tokenizer, ids[0], None, 0),
                *(
                    scored(self.tokenizer, token, known[place], most)
                    for place, token in enumerate(ids[1:])
                ),
            )
        self.listener(Started(prompt, cached))

    def take(self, token: int) -> None:
        """Add a token, tell what can be shown, and finish where this ends the answer."""
        self.made.append(token)
        self._count += 1
        if token in self.settled.ends and not self.sampling.ignore_end:
            self.finish("stop")
            return
        text = self._text.push(token)
        if self._text.stopped:
            self._tell(text)
            self.finish("stop", flush=False)
        elif len(self.made) >= self.most:
            self._tell(text)
            self.finish("length")
        elif text or self._told:
            self._tell(text)

    def finish(self, reason: FinishReason, error: str | None = None, flush: bool = True) -> None:
        """Send what is left, and the last event; once."""
        if self.finished:
            return
        self.finished = True
        rest = self._text.finish() if flush and reason in ("stop", "length") else ""
        if rest or self._told or self._count:
            self._tell(rest)
        self.listener(Finished("stop" if self._text.stopped else reason, error))

    def _tell(self, text: str) -> None:
        told, self._told = tuple(self._told), []
        count, self._count = self._count, 0
        self.listener(Delta(text, told, count))
