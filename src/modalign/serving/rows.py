"""One request inside the engine: generated tokens, delivered events, and whether it is done."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modalign.serving.requests import (
    Alternative,
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
from modalign.serving.sampling import Likely, Settled, checked, draw, generator_of, likely
from modalign.serving.text import Detokenizer, Piece, Spelling

_numbers = itertools.count()
_Score = tuple[
    int, float | None, tuple[Alternative, ...], str
]  # token, log-probability, alternatives, name


@dataclass(eq=False)
class Row:
    """A request and its state.

    Attributes:
        client: whose it is: clients take turns.
        made: ids so far.
        memory: what in-layer connectors read.
        cancelled: its client has disconnected.
        finished: its last event was sent.
        failed: and said that something went wrong.
    """

    prompt: Prompt
    sampling: Sampling
    listener: Listener
    spelling: Spelling
    settled: Settled
    device: torch.device
    most: int  # maximum tokens: the request's own limit, or what the model's length leaves
    alone: bool = False  # answered by `generate`, which applies the model's processors itself
    client: Hashable = ""
    number: int = field(default_factory=lambda: next(_numbers))
    made: list[int] = field(default_factory=list)
    memory: Memory = field(default_factory=dict)
    cancelled: bool = False
    finished: bool = False
    failed: bool = False

    def __post_init__(self) -> None:
        # A scored prompt is decoded token by token before the answer and needs no other context.
        alone = self.sampling.prompt_logprobs or not self.prompt.continued
        before = () if alone else self.prompt.ids
        self._text = Detokenizer(self.spelling, self.sampling.stop, before)
        self._stop_ids = self.spelling.stop_ids(self.sampling.stop)
        self._first = not self.prompt.continued  # no text precedes the next token
        self._generator = generator_of(self.sampling, self.device)
        length = -1 if self.alone else len(self.prompt.ids)
        self._processors = self.settled.processors(length, self.device)
        self._scores: deque[_Score] = deque()  # scores of tokens whose text was not delivered yet
        self._count = 0

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the most likely one, without scores."""
        greedy = self._generator is None and not self._processors
        return greedy and self.sampling.logprobs is None

    @property
    def scored(self) -> bool:
        """Whether the prompt's tokens get log-probabilities."""
        return self.sampling.prompt_logprobs

    def cancel(self) -> None:
        """Free its slot after the running step."""
        self.cancelled = True

    def choose(self, logits: Tensor) -> int:
        """Choose the next token from logits (V,) without suppressed ids."""
        logits = logits.float()
        if self._processors:
            ids = torch.tensor([[*self.prompt.ids, *self.made]], device=logits.device)
            logits = self._processors(ids, logits[None])[0]
        best, place = (each.item() for each in logits.max(dim=-1))
        checked(best)
        own = self._generator
        token = int(place) if own is None else draw(logits, self.sampling, own)
        if self.sampling.logprobs is not None:
            self._score(*likely(logits[None], [token], self.sampling.logprobs))
        return token

    def _score(self, found: Likely) -> None:
        """Note a token's log-probability and its alternatives."""
        token, logprob, top = found
        named = self.spelling.named
        others = tuple(Alternative(*named(other, self._first), value) for other, value in top)
        self._scores.append((token, logprob, others, named(token, self._first).text))
        self._first = self._first and token in self.spelling.special

    def prompt_scores(self, logits: Tensor, start: int = 0) -> list[Likely]:
        """How likely tokens of the prompt are, from logits (T, V) of the positions from ``start`` on.

        They are those after each position; the prompt's first token comes with position 0.
        """
        tokens = self.prompt.ids[start + 1 : start + 1 + len(logits)]
        found = likely(logits[: len(tokens)], tokens, self.sampling.logprobs or 0)
        return found if start else [Likely(self.prompt.ids[0]), *found]

    def start(self, scores: Sequence[Likely], cached: int) -> None:
        """Tell that the prompt was read; with its scores where they were asked for."""
        prompt: tuple[Scored, ...] = ()
        if scores:
            self._first = True
            for found in scores:
                if self.cancelled:
                    return
                self._score(found)
            prompt = self._scored(self._text.read(self.prompt.ids))
            if self.sampling.logprobs is None:
                self._scores.clear()
        self.listener(Started(prompt, cached))

    def _scored(self, pieces: Sequence[Piece]) -> tuple[Scored, ...]:
        if not self._scores:
            return ()
        found = []
        for piece in pieces:
            token, logprob, top, name = self._scores.popleft()
            found.append(Scored(token, piece.text, piece.data, logprob, top, name))
        return tuple(found)

    def take(self, token: int) -> None:
        """Add a token, deliver what can be shown, and finish if this ends the answer."""
        self.made.append(token)
        self._count += 1
        if token in self._stop_ids or (token in self.settled.ends and not self.sampling.ignore_end):
            self.finish("stop")
            return
        text, pieces = self._text.push(token)
        if self._text.stopped:
            self._tell(text, pieces)
            self._scores.clear()  # scores of tokens after the stop text
            self.finish("stop", flush=False)
        elif len(self.made) >= self.most:
            self._tell(text, pieces)
            self.finish("length")
        elif text or (pieces and self._scores):
            self._tell(text, pieces)

    def finish(self, reason: FinishReason, error: str | None = None, flush: bool = True) -> None:
        """Deliver the rest and the last event, once."""
        if self.finished:
            return
        self.finished, self.failed = True, reason == "error"
        text = ""
        pieces: list[Piece] = []
        if flush and reason in ("stop", "length"):
            text, pieces = self._text.finish()
            if not self._text.stopped:  # the end token has no text
                pieces += [Piece("", b"")] * (len(self._scores) - len(pieces))
        if text or self._scores or self._count:
            self._tell(text, pieces)
        self.listener(Finished("stop" if self._text.stopped else reason, error))

    def _tell(self, text: str, pieces: Sequence[Piece]) -> None:
        count, self._count = self._count, 0
        self.listener(Delta(text, self._scored(pieces), count))
