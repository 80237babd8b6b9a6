"""Milliseconds for the first and the next token, of several models in interleaved rounds.

On a machine with other work a model that is timed after another one is timed in other circumstances. So every
round times every model, each round beginning with another one, and what is reported are medians over rounds
and ratios within a round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from modalign.lengths import declared_length
from modalign.models.caches import CACHE
from modalign.models.parts import embedding
from modalign.models.projections import evaluating
from modalign.numbers.bootstrap import median_of_few
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

BATCHES = (1, 8)
PROMPT, TOKENS = 128, 8  # tokens of the prompt, and of the answer that is timed


class Timing(BaseModel):
    """Seconds of a model at one batch size.

    Attributes:
        batch: rows at once.
        prompt: tokens before the first one.
        first: from the prompt to the first token.
        next: for each token after it.
        first_ratio, next_ratio: to the first model's, within rounds; None for itself.
    """

    model_config = ConfigDict(extra="forbid")

    batch: int
    prompt: int
    first: Estimate
    next: Estimate
    first_ratio: Estimate | None = None
    next_ratio: Estimate | None = None


def measure(
    models: Mapping[str, Any],
    *,
    rounds: int,
    batches: Sequence[int] = BATCHES,
    progress: Progress | None = None,
) -> dict[str, list[Timing]]:
    """Time causal language models of one vocabulary on random ids.

    Args:
        models: by name; ratios are to the first one's.
        rounds: how often each is timed.
        batches: rows at once.
        progress: told after each round.

    Returns:
        Each model's timings, one per batch size.
    """
    names = list(models)
    limits = [declared_length(model.config) or PROMPT + TOKENS for model in models.values()]
    prompt = max(1, min(PROMPT, min(limits) - TOKENS))
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for number in range(-1, rounds):  # the first one warms up
        if progress:
            progress("timing", max(number, 0), rounds)
        start = max(number, 0) % len(names)
        for name in names[start:] + names[:start]:
            for batch in batches:
                found = _once(models[name], batch, prompt)
                if number >= 0:
                    times.setdefault((name, batch), []).append(found)
    if progress:
        progress("timing", rounds, rounds)
    return {
        name: [
            _timing(batch, prompt, times[name, batch], times[names[0], batch] if name != names[0] else None)
            for batch in batches
        ]
        for name in names
    }  # fmt: skip


def _timing(
    batch: int,
    prompt: int,
    own: Sequence[tuple[float, float]],
    base: Sequence[tuple[float, float]] | None,
) -> Timing:
    def median(place: int) -> Estimate:
        return median_of_few([each[place] for each in own], unit="seconds", over="rounds")

    def ratio(place: int) -> Estimate | None:
        if base is None:
            return None
        values = [a[place] / b[place] for a, b in zip(own, base, strict=True)]
        return median_of_few(values, unit="ratio", over="rounds")

    return Timing(
        batch=batch,
        prompt=prompt,
        first=median(0),
        next=median(1),
        first_ratio=ratio(0),
        next_ratio=ratio(1),
    )


@torch.inference_mode()
def _once(model: Any, batch: int, prompt: int) -> tuple[float, float]:
    """Seconds for the first token, and the mean for those after it."""
    table = embedding(model).weight
    ids = torch.arange(batch * prompt, device=table.device).reshape(batch, prompt) % len(table)
    with evaluating(model):
        began = _now(table.device)
        output = model(input_ids=ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        first = _now(table.device)
        for _ in range(TOKENS):
            output = model(input_ids=token, use_cache=True, **{CACHE: output[CACHE]})
            token = output.logits[:, -1:].argmax(-1)
        return first - began, (_now(table.device) - first) / TOKENS


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
