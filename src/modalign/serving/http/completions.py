"""/v1/completions: continue or score prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalign.serving.http.answering import Work
from modalign.serving.http.errors import refused
from modalign.serving.http.sampled import asks_for, room, sampling_of
from modalign.serving.http.schemas import CompletionRequest
from modalign.serving.http.shapes import Collected, Shape, finite, in_pieces
from modalign.serving.requests import Delta, Engine, Event, Prompt, Scored, Started

DEFAULT_TOKENS = 16  # OpenAI's
MOST_SCORES = 1_000_000  # log-probabilities of prompts in one answer: about 100 bytes each


def prepare(request: CompletionRequest, engine: Engine, name: str, most_choices: int) -> Work:
    """Tokenise prompts; called on a thread of the pool.

    Raises:
        ApiError, PromptError: a field or a length is invalid.
    """
    given, n = request.prompts, request.n or 1
    asked = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    if len(given) * n > most_choices:
        raise refused(
            "prompt",
            f"{len(given)} prompts with n={n} exceed the {most_choices} answers that one request may "
            "ask for: send several requests",
        )
    if not asked and not request.echo:
        raise refused("max_tokens", "0 returns nothing without echo: request at least 1 token")
    prompts = [engine.text_prompt(prompt) for prompt in given]
    for prompt in prompts:
        room(engine, prompt, asked, "prompt")
    # Only the engine knows the text of ids: it comes with the scored prompt.
    unknown = any(not isinstance(prompt, str) for prompt in given)
    scored = bool(request.echo) and (request.logprobs is not None or unknown or not asked)
    if scored:
        _check_scores(prompts, n, request.logprobs or 0)
    sampling = replace(
        sampling_of(request),
        max_tokens=asked,
        logprobs=request.logprobs,
        prompt_logprobs=scored,
    )
    asks = asks_for(prompts, sampling, n)
    stream_usage = bool(request.stream_options and request.stream_options.include_usage)
    echoed: list[str | None] | None = None
    if request.echo:
        echoed = [text if isinstance(text, str) else None for text in given for _ in range(n)]
    shape = CompletionShape(name, len(asks), echoed, request.logprobs, stream_usage)
    return Work(prompts, asks, shape, bool(request.stream), stream_usage)


def _check_scores(prompts: Sequence[Prompt], n: int, alternatives: int) -> None:
    scores = n * (1 + alternatives) * sum(len(prompt.ids) for prompt in prompts)
    if scores > MOST_SCORES:
        raise refused(
            "logprobs",
            f"the prompts would have {scores:,} log-probabilities, and an answer holds at most "
            f"{MOST_SCORES:,}: send several requests, or ask for fewer alternatives",
        )


class CompletionShape(Shape):
    """Answers that continue prompts.

    Args:
        name: name of the model.
        choices: number of answers.
        echoed: the prompts' texts in the order of choices, None for one of ids; None without ``echo``.
        logprobs: how many alternatives tokens carry; None for no log-probabilities.
        usage: whether chunks have the field ``usage``.
    """

    def __init__(
        self,
        name: str,
        choices: int,
        echoed: list[str | None] | None,
        logprobs: int | None,
        usage: bool,
    ) -> None:
        super().__init__(("text_completion", "text_completion"), "cmpl", name, usage)
        self._echoed = echoed
        self._logprobs = logprobs
        self._offsets = [0] * choices

    def chunk(self, choice: int, event: Event) -> str:
        """See :class:`Shape`."""
        if isinstance(event, Delta):
            return self._text(choice, event.text, event.tokens)
        if not isinstance(event, Started):
            return self._text(choice, "", (), event.reason)
        if self._echoed is None:
            return ""
        return self._text(choice, self._echo(choice, event.prompt), event.prompt)

    def _text(
        self, choice: int, text: str, tokens: Sequence[Scored], finish: str | None = None
    ) -> str:
        if not text and not tokens and finish is None:
            return ""
        shown = self._logprobs is not None and tokens
        logprobs = in_pieces(self._scores(choice, tokens)) if shown else "null"
        return self.written(choice, f'"text":{json.dumps(text)}', logprobs, finish)

    def choice(self, place: int, answer: Collected) -> dict[str, Any]:
        """See :class:`Shape`."""
        text, tokens = answer.text, answer.tokens
        if self._echoed is not None:
            text = self._echo(place, answer.prompt) + text
            tokens = [*answer.prompt, *tokens]
        return {
            "index": place,
            "text": text,
            "logprobs": None if self._logprobs is None else self._scores(place, tokens),
            "finish_reason": answer.reason,
        }

    def _echo(self, choice: int, prompt: Sequence[Scored]) -> str:
        assert self._echoed is not None
        text = self._echoed[choice]
        return "".join(token.text for token in prompt) if prompt or text is None else text

    def _scores(self, choice: int, tokens: Sequence[Scored]) -> dict[str, Any]:
        """Return OpenAI's four lists; the chosen token is among its alternatives."""
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [
                None if token.logprob is None else finite(token.logprob) for token in tokens
            ],
            "top_logprobs": [_top(token) for token in tokens] if self._logprobs else None,
            "text_offset": offsets,
        }


def _top(token: Scored) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in token.top:  # different tokens may have the same name: the most likely one stays
        top.setdefault(other.name, finite(other.logprob))
    top.setdefault(token.name, finite(token.logprob))
    return top
