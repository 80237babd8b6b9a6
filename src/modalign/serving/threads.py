"""How many threads the batch is worth, measured on this machine before requests come.

Small models are slower with more threads, and a thread that works for nothing is taken from the event loop
and from whatever else runs here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.runners import Runner

WORTH = 1.1  # more threads must make it at least so many times faster
# Parameters; beyond, all threads are worth it, and a busy moment could say otherwise.
LARGE = 20_000_000
PROMPT, ANSWER = 48, 64  # tokens of the request that is measured
# Every number of threads has several turns: a busy moment must not hit only one.
TURNS, TRIES = 4, 3


@contextmanager
def alone() -> Iterator[int]:
    """Have the calling thread, and all that begin after the block, compute without companions.

    GNU's OpenMP counts the companions of every thread that ever computed in parallel. Where they are more than
    cores, all of them sleep between two pieces of work instead of spinning, and a model of 100 M parameters is
    1.7 times slower on two cores. So the only thread with companions must be the model's own, which sets their
    number itself.

    Yields:
        How many threads there were for the caller: what the model's may have.
    """
    most = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield most
    finally:
        torch.set_num_threads(1)  # a new thread starts with the number that was set last, by any


def worthwhile(runner: Runner, prompt: Prompt, rows: int, counts: Sequence[int]) -> int:
    """The fewest threads that take at most ``WORTH`` times the time of the best number.

    What counts is a step of all rows with each row's share of reading its prompt. The calling thread's
    number of threads is left at the last one tried: set it afterwards.

    Args:
        runner: of a model on the CPU.
        prompt: any text.
        rows: of the batch.
        counts: numbers of threads to choose from, rising.
    """
    if len(counts) == 1:
        return counts[0]
    repeated = Prompt((prompt.ids * PROMPT)[:PROMPT])
    slots = Slots()
    read = runner.prefill([repeated])
    for _ in range(rows):
        slots.join(read.layers)
    ids = torch.full((rows,), repeated.ids[0], device=runner.device)
    reading, step = dict.fromkeys(counts, math.inf), dict.fromkeys(counts, math.inf)
    for count in [*counts] * TURNS:
        torch.set_num_threads(count)
        took = _shortest(lambda: runner.prefill([repeated]))
        reading[count] = min(reading[count], took)
        took = _shortest(lambda: runner.step(ids, slots, read.memories * rows))
        step[count] = min(step[count], took)
    seconds = {count: step[count] + reading[count] * rows / ANSWER for count in counts}
    best = min(seconds.values())
    return next(count for count in counts if seconds[count] <= WORTH * best)


def candidates(model: torch.nn.Module, most: int) -> list[int]:
    """Numbers of threads to choose from, rising, ``most`` the last; only that one for a large model."""
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
