"""What both kinds of completions do with their common fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modalign.serving.http.errors import refused
from modalign.serving.http.runs import Ask
from modalign.serving.http.schemas import Sampled
from modalign.serving.requests import Engine, Prompt, Sampling

SEEDS = 2**63  # a seed is below


def sampling_of(request: Sampled) -> Sampling:
    """How answers are drawn; OpenAI's defaults where a field is left out."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=request.stops,
        ignore_end=bool(request.ignore_eos),
    )


def asks_for(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[Ask]:
    """``n`` answers of every prompt, each with a seed of its own."""
    first = sampling.seed
    seeds: list[int | None] = [first]
    for number in range(1, n):
        seeds.append(None if first is None else (first + number) % SEEDS)
    return [Ask(prompt, replace(sampling, seed=seed)) for prompt in prompts for seed in seeds]


def room(engine: Engine, prompt: Prompt, asked: int | None, param: str) -> int:
    """Tokens that the answer may have: as asked, else all that are left.

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
    advice = f", or ask for at most {left} tokens" if left > 0 else ""
    raise refused(
        param,
        f"{length} tokens of prompt{of_media} and {wanted} of answer are more than the {engine.max_length} that "
        f"this model takes: shorten the prompt{advice}",
        "context_length_exceeded",
    )
