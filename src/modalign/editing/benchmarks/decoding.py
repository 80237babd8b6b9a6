"""Decode many prompts at once: padded on the left, with masks and positions over everything read so far.

A cache holds every column that was fed, padding included, and the mask passed with it must cover them
all. (In transformers 5 a mask of one column passed with a cache is silently wrong.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modalign.editing.benchmarks.calling import device_of, judging, logits_at
from modalign.editing.engine.tokens import Rows
from modalign.lengths import check_length, declared_length
from modalign.models.caches import CACHE
from modalign.progress import Progress

BATCH = 64


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    ends: frozenset[int] = frozenset(),
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Progress | None = None,
    label: str = "generating",
) -> list[tuple[int, ...]]:
    """Continue prompts, greedily or by sampling.

    Args:
        model: anything called like a transformers causal LM; not changed.
        prompts: ids.
        limits: the most new tokens for each prompt; cut to what the model can still read.
        ends: ids after which a row stops; they are kept at its end.
        top_k: sample from this many likeliest tokens; None takes the likeliest.
        seed: of the sampling. A prompt's sample depends only on the seed and on the prompt's place in the
            list, not on how prompts are batched.
        batch_size: how many prompts are continued together.
        progress: told how many are done.
        label: what ``progress`` calls this step.

    Returns:
        The new ids of each prompt.
    """
    made: list[tuple[int, ...]] = [()] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    device, most = device_of(model), declared_length(getattr(model, "config", None))
    if most is not None:
        for ids in prompts:
            check_length(len(ids), most, "a prompt to continue")
        limits = [min(limit, most - len(ids)) for limit, ids in zip(limits, prompts, strict=True)]
    with judging(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in chosen]
            pick = functools.partial(_pick, top_k=top_k, generators=generators)
            rows = _left_padded([prompts[i] for i in chosen], device)
            new = _continue(model, rows, [limits[i] for i in chosen], ends, pick)
            for i, ids in zip(chosen, new, strict=True):
                made[i] = ids
            if progress:
                progress(label, start + len(chosen), len(order))
    return made


def _pick(logits: Tensor, top_k: int | None, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the next token of every row, (B,): the likeliest, or a sample among the likeliest."""
    if top_k is None:
        return logits.argmax(-1)
    values, ids = logits.float().topk(min(top_k, logits.shape[-1]))
    shares = values.softmax(-1).cpu()
    drawn = [
        torch.multinomial(share, 1, generator=generator)
        for share, generator in zip(shares, generators, strict=True)
    ]
    return ids.gather(1, torch.stack(drawn).to(ids.device))[:, 0]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> Rows:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return Rows(ids.to(device), mask.to(device))


def _continue(
    model: Any,
    rows: Rows,
    limits: Sequence[int],
    ends: frozenset[int],
    pick: Callable[[Tensor], Tensor],
) -> list[tuple[int, ...]]:
    B = len(rows.ids)
    mask, fed, cache = rows.mask, rows.ids, None
    positions = rows.positions
    made: list[list[int]] = [[] for _ in range(B)]
    for _ in range(max(limits)):
        last = (
            torch.arange(B, device=fed.device),
            torch.full((B,), fed.shape[1] - 1, device=fed.device),
        )
        given = {"position_ids": positions, CACHE: cache}
        logits, output = logits_at(model, Rows(fed, mask), last, given, use_cache=True)
        new = pick(logits)
        for row, token in enumerate(new.tolist()):
            stopped = len(made[row]) >= limits[row] or (made[row] and made[row][-1] in ends)
            if not stopped:
                made[row].append(token)
        if all(
            len(ids) >= limit or ids[-1] in ends for ids, limit in zip(made, limits, strict=True)
        ):
            break
        mask = torch.cat([mask, mask.new_ones(B, 1)], 1)
        cache = getattr(output, CACHE, None)
        if cache is None:  # a model without a cache reads the whole row again
            fed = torch.cat([fed, new[:, None]], 1)
            positions = Rows(fed, mask).positions
        else:
            fed, positions = new[:, None], mask.sum(1, keepdim=True) - 1
    return [tuple(ids) for ids in made]
