"""What goes into the engine and what comes out of it: prompts, sampling, events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from modalign.data.records import Message
from modalign.errors import ModalignError

# A message; or a mapping as chat templates take them, where there is more to a turn (tool calls and results).
Turn = Message | Mapping[str, object]
GREEDY = 1e-5  # temperatures below: logits divided by them would overflow
FinishReason = Literal["stop", "length", "cancelled", "error"]


class QueueFullError(ModalignError):
    """No place is left among the waiting requests; ``retry_after`` seconds may bring one."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(ModalignError):
    """The engine finishes what it has and takes no further request."""


class PromptError(ModalignError):
    """A prompt that this model cannot take: too long, of a modality it lacks, undecodable media."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        ids: token ids with as many placeholders as the media take positions.
        inputs: further inputs of the model's forward for this prompt alone (signals, batch dimension
            included), as its processor gives them.
        media: content hashes of the media in reading order, each with its modality.
        spans: first position and number of positions of each medium.
        media_tokens: positions per modality that media take, out of ``len(ids)``.
        thinking: whether it ends within thoughts (``<think>``), in which nothing is called.
        continued: whether the answer goes on from its text; the answer of a chat is a text of its own.
    """

    ids: tuple[int, ...]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    media: tuple[tuple[str, str], ...] = ()  # (modality, hash)
    spans: tuple[tuple[int, int], ...] = ()
    media_tokens: Mapping[str, int] = field(default_factory=dict)
    continued: bool = False
    thinking: bool = False


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_tokens: longest answer; 0 with ``prompt_logprobs`` scores the prompt only.
        temperature: below `GREEDY` the most likely token is taken.
        top_p: nucleus; 1 takes every token.
        seed: of this request's own generator; None draws one.
        stop: texts that end the answer and are not part of it.
        logprobs: how many alternatives to give with every token; None for no log-probabilities.
        prompt_logprobs: also give the prompt's tokens their log-probabilities (``echo``).
        ignore_end: go on behind end tokens (benchmarks).
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


@dataclass(frozen=True)
class Alternative:
    """A token that could stand at a place.

    Attributes:
        name: the text that it would add, the name of a special token, or ``bytes:`` and its bytes in
            hexadecimal where they are no whole characters.
        data: its bytes.
        logprob: natural logarithm of its probability.
    """

    name: str
    data: bytes
    logprob: float


@dataclass(frozen=True)
class Scored:
    """A token with its natural-log probability and the most likely tokens at its place.

    The texts of all tokens put together are the text, and so are their bytes.

    Attributes:
        id: of the token.
        text: what it adds to the text; of a character of several tokens the last has it.
        data: its bytes.
        logprob: None for a prompt's first token.
        top: the alternatives asked for, most likely first.
        name: how it is called among them.
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
        prompt: the prompt's tokens, where ``prompt_logprobs`` asked for them.
        cached: prompt positions whose keys and values were known already.
    """

    prompt: tuple[Scored, ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class Delta:
    """Text that can be shown now: whole characters, never part of a stop text.

    Attributes:
        text: may be empty while characters or stop texts are open.
        tokens: those made since the last delta, where ``logprobs`` was asked for.
        count: tokens made since the last delta.
    """

    text: str
    tokens: tuple[Scored, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of every request.

    Attributes:
        reason: why it ended.
        error: what went wrong, where the reason is ``error``.
    """

    reason: FinishReason
    error: str | None = None


Event = Started | Delta | Finished


class Listener(Protocol):
    """Told of a request's events, from the engine's thread: it must return at once."""

    def __call__(self, event: Event, /, more: bool = False) -> None:
        """Take one event.

        Args:
            event: what happened.
            more: further events, of this request or of others, are told at once after this one: whoever is
                woken for them can be woken by the last.
        """


class Handle(Protocol):
    """A request in the engine."""

    def cancel(self) -> None:
        """Free its place as soon as the running step ends; ``Finished("cancelled")`` follows."""


@dataclass(frozen=True)
class EngineState:
    """Figures for /health and /metrics.

    Attributes:
        running: requests in the batch.
        waiting: requests in the queue.
        draining: no request is taken any more.
        steps: decode steps so far.
        prompt_tokens, new_tokens: read and made so far.
        cached_tokens: prompt positions taken from the prefix cache so far.
        media_hits, media_misses: media whose encoder result was known, or not, so far.
        max_batch: rows of the batch.
        batching: "continuous", or "one by one" where the model cannot be batched, with the reason in ``note``.
        note: why, in words.
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
    max_batch: int = 0
    batching: str = "continuous"
    note: str = ""


class Engine(Protocol):
    """What the HTTP layer needs of whatever makes the answers (a local model, a gateway)."""

    modalities: tuple[str, ...]  # taken besides text
    max_length: int  # positions of prompt and answer together
    takes_tools: bool  # the chat template renders tools

    def chat_prompt(
        self, messages: Sequence[Turn], tools: Sequence[Mapping[str, object]] | None = None
    ) -> Prompt:
        """Render messages by the chat template, up to where the answer begins. PromptError."""

    def text_prompt(self, text: str | Sequence[int]) -> Prompt:
        """A plain text, or token ids, to go on from. PromptError."""

    def submit(self, prompt: Prompt, sampling: Sampling, listener: Listener) -> Handle:
        """Take a request. QueueFullError, DrainingError, PromptError (too long)."""

    def state(self) -> EngineState:
        """Figures of now."""

    def drain(self, timeout: float) -> bool:
        """Take no more, finish what runs; True when all is done within ``timeout`` seconds."""

    def close(self) -> None:
        """End at once; what runs is cancelled."""
