"""Inputs and outputs of the engine: prompts, sampling, events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from modalign.data.records import Message
from modalign.errors import ModalignError

# A message, or a mapping for chat templates if a turn has tool calls or results.
Turn = Message | Mapping[str, object]
GREEDY = 1e-5  # temperatures below: logits divided by them would overflow
FinishReason = Literal["stop", "length", "cancelled", "error"]


class QueueFullError(ModalignError):
    """The queue is full; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(ModalignError):
    """The engine is shutting down and accepts no further requests."""


class PromptError(ModalignError):
    """A prompt that this model cannot take: too long, an unsupported modality, undecodable media."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        ids: token ids with one placeholder per position of the media.
        inputs: further inputs of the model's forward for this prompt (signals, with a batch dimension),
            as given by its processor.
        media: content hashes of the media in reading order, each with its modality.
        spans: first position and number of positions of each medium.
        types: which kind of medium every position belongs to, (1, T), for classes that place media by it.
        media_tokens: positions of media per modality, out of ``len(ids)``.
        thinking: whether it ends within thoughts (``<think>``), where calls are ignored.
        continued: whether the answer continues its text; the answer of a chat is a separate text.
    """

    ids: tuple[int, ...]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    media: tuple[tuple[str, str], ...] = ()  # (modality, hash)
    spans: tuple[tuple[int, int], ...] = ()
    types: Tensor | None = None
    media_tokens: Mapping[str, int] = field(default_factory=dict)
    continued: bool = False
    thinking: bool = False


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of an answer.

    Attributes:
        max_tokens: longest answer; 0 with ``prompt_logprobs`` scores the prompt only.
        temperature: below `GREEDY` the most likely token is taken.
        top_p: nucleus; 1 takes every token.
        seed: of this request's own generator; None draws one.
        stop: texts that end the answer and are not part of it.
        logprobs: number of alternatives per token; None for no log-probabilities.
        prompt_logprobs: also return log-probabilities of the prompt's tokens (``echo``).
        ignore_end: continue after end tokens (for benchmarks).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_end: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, and none drawn."""
        return self.temperature < GREEDY


@dataclass(frozen=True, slots=True)
class Alternative:
    """A possible token at a position.

    Attributes:
        name: the text that it would add, the name of a special token, or ``bytes:`` and its bytes in
            hexadecimal if they are not whole characters.
        data: its bytes.
        logprob: natural logarithm of its probability.
    """

    name: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its natural-log probability and the most likely tokens at its position.

    The texts of all tokens concatenate to the text, and so do their bytes.

    Attributes:
        id: the token's id.
        text: what it adds to the text; if a character has several tokens, the last one has its text.
        data: its bytes.
        logprob: None for a prompt's first token.
        top: the requested alternatives, most likely first.
        name: its name among them.
    """

    id: int
    text: str
    data: bytes
    logprob: float | None
    top: tuple[Alternative, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Started:
    """The prompt has been read.

    Attributes:
        prompt: the prompt's tokens, if requested by ``prompt_logprobs``.
        cached: prompt positions whose keys and values were cached.
    """

    prompt: tuple[Scored, ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class Delta:
    """Text that can be shown now: whole characters, never part of a stop text.

    Attributes:
        text: may be empty while a character or stop text is incomplete.
        tokens: tokens since the last delta, if ``logprobs`` was requested.
        count: number of tokens since the last delta.
    """

    text: str
    tokens: tuple[Scored, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of every request.

    Attributes:
        reason: why it ended.
        error: the message, if the reason is ``error``.
    """

    reason: FinishReason
    error: str | None = None


Event = Started | Delta | Finished


class Listener(Protocol):
    """Receives a request's events on the engine's thread; must return at once."""

    def __call__(self, event: Event, /, more: bool = False) -> None:
        """Receive one event.

        Args:
            event: the event.
            more: further events, of this request or of others, follow immediately, so a waiting thread can
                be woken by the last one.
        """


class Handle(Protocol):
    """A request in the engine."""

    def cancel(self) -> None:
        """Free its slot after the running step; ``Finished("cancelled")`` follows."""


@dataclass(frozen=True)
class EngineState:
    """Figures for /health and /metrics.

    Attributes:
        running: requests in the batch.
        waiting: requests in the queue.
        draining: new requests are refused.
        steps: decode steps so far.
        prompt_tokens, new_tokens: read and generated so far.
        cached_tokens: prompt positions taken from the prefix cache so far.
        media_hits, media_misses: media whose encoding was cached, or not, so far.
        max_batch: rows of the batch.
        pieces: of prompts, read so far.
        prefix_hits, prefix_misses: prompts whose beginning was cached, or not, so far.
        prefix_evicted: pages of the prefix cache that made room for others, so far.
        prefix_pages, prefix_bytes: that the prefix cache holds.
        threads: of the model's steps; 0 on other devices than the CPU.
        reading: "in pieces", or "whole" if the model's prompts cannot be cut.
        reading_note: the reason for it.
        batching: "continuous", or "one by one" if the model cannot be batched.
        note: the reason for it.
    """

    running: int = 0
    waiting: int = 0
    draining: bool = False
    steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0
    media_hits: int = 0
    media_misses: int = 0
    pieces: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_evicted: int = 0
    prefix_pages: int = 0
    prefix_bytes: int = 0
    threads: int = 0
    reading: str = "whole"
    reading_note: str = ""
    max_batch: int = 0
    batching: str = "continuous"
    note: str = ""


class Engine(Protocol):
    """The interface between the HTTP layer and what generates the answers (a local model, a gateway)."""

    modalities: tuple[str, ...]  # accepted besides text
    signals: Mapping[str, Mapping[str, Any]]  # modality -> its encoder's spec, for decoding
    max_length: int  # positions of prompt and answer together
    takes_tools: bool  # the chat template renders tools

    def chat_prompt(
        self, messages: Sequence[Turn], tools: Sequence[Mapping[str, object]] | None = None
    ) -> Prompt:
        """Render messages with the chat template, up to the answer. Raises PromptError."""

    def text_prompt(self, text: str | Sequence[int]) -> Prompt:
        """Make a prompt of plain text or token ids. Raises PromptError."""

    def submit(
        self, prompt: Prompt, sampling: Sampling, listener: Listener, client: str = ""
    ) -> Handle:
        """Queue a client's request; clients take turns.

        Raises QueueFullError, DrainingError, PromptError (too long).
        """

    def state(self) -> EngineState:
        """Return the current state."""

    def drain(self, timeout: float) -> bool:
        """Stop accepting, finish running requests; True if all finish within ``timeout`` seconds."""

    def close(self) -> None:
        """Stop at once and cancel running requests."""
