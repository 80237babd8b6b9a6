"""How many threads the batch is worth, measured on this machine before requests come.

Small models are slower with more threads, and a thread that works for nothing is taken from the event loop
and from whatever else runs here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.runners import Runner

WORTH = 1.1  # more threads must make it at least so many times faster
LARGE = (
    20_000_000  # parameters: beyond, all threads are worth it; a busy moment could say otherwise
)
PROMPT, ANSWER = 48, 64  # tokens of the request that is measured
TURNS, TRIES = (
    4,
    3,
)  # every number of threads has several turns: a busy moment must not hit only one


def worthwhile(runner: Runner, prompt: Prompt, rows: int) -> int:
    """The fewest threads that take at most ``WORTH`` times the time of the best number.

    What counts is a step of all rows with each row's share of reading its prompt. The calling thread's
    number of threads is left at the last one tried: set it afterwards.

    Args:
        runner: of a model on the CPU.
        prompt: any text.
        rows: of the batch.
    """
    counts = candidates(runner.model)
    if len(counts) == 1:
        return counts[0]
    repeated = Prompt((prompt.ids * PROMPT)[:PROMPT])
    slots = Slots()
    read = runner.prefill([repeated])
    for _ in range(rows):
        slots.join(read.layers)
    ids = torch.full((rows,), repeated.ids[0], device=runner.device)
    reading, step = dict.fromkeys(counts, math.inf), dict.fromkeys(counts, math.inf)
    for count in counts * TURNS:
        torch.set_num_threads(count)
        took = _shortest(lambda: runner.prefill([repeated]))
        reading[count] = min(reading[count], took)
        took = _shortest(lambda: runner.step(ids, slots, read.memories * rows))
        step[count] = min(step[count], took)
    seconds = {count: step[count] + reading[count] * rows / ANSWER for count in counts}
    best = min(seconds.values())
    return next(count for count in counts if seconds[count] <= WORTH * best)


def candidates(model: torch.nn.Module) -> list[int]:
    """Numbers of threads to choose from, rising; only the present one for a large model."""
    most = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
        return [most]
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n < most] + [most]


def _shortest(act: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, the first left out."""
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
