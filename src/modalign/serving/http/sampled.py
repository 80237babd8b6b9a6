"""Handle the fields that both kinds of completions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modalign.serving.http.errors import refused
from modalign.serving.http.runs import Ask
from modalign.serving.http.schemas import Sampled
from modalign.serving.requests import Engine, Prompt, Sampling

SEEDS = 2**63  # seeds are below this


def sampling_of(request: Sampled) -> Sampling:
    """Return the sampling settings, with OpenAI's defaults."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=request.stops,
        ignore_end=bool(request.ignore_eos),
    )


def asks_for(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[Ask]:
    """Request ``n`` answers per prompt, each with its own seed."""
    first = sampling.seed
    seeds: list[int | None] = [first]
    for number in range(1, n):
        seeds.append(None if first is None else (first + number) % SEEDS)
    return [Ask(prompt, replace(sampling, seed=seed)) for prompt in prompts for seed in seeds]


def room(engine: Engine, prompt: Prompt, asked: int | None, param: str) -> int:
    """Return the maximum tokens of the answer: as requested, else all that are left.

    Raises:
        ApiError: prompt and answer are longer than the model takes.
    """
    length = len(prompt.ids)
    left = engine.max_length - length
    wanted = 1 if asked is None else asked
    if left >= wanted:
        return left if asked is None else asked
    media = sum(prompt.media_tokens.values())
    of_media = f" ({media} of them media)" if media else ""
    advice = f", or request at most {left} tokens" if left > 0 else ""
    raise refused(
        param,
        f"{length} tokens of prompt{of_media} and {wanted} of answer exceed the {engine.max_length} that "
        f"this model takes: shorten the prompt{advice}",
        "context_length_exceeded",
    )
