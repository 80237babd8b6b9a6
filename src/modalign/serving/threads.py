"""Measure, before requests come, how many threads are worthwhile on this machine.

Small models are slower with more threads, and a useless thread takes time from the event loop
and from other programs.
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

WORTH = 1.1  # more threads must speed it up at least by this factor
# Parameters; above this all threads are worthwhile, and a busy moment could suggest otherwise.
LARGE = 20_000_000
PROMPT, ANSWER = 48, 64  # tokens of the measured request
# Every number of threads is measured several times, so that a busy moment does not hit only one.
TURNS, TRIES = 4, 3


@contextmanager
def alone() -> Iterator[int]:
    """Make the calling thread, and all that start after the block, compute single-threaded.

    GNU's OpenMP keeps helper threads for every thread that ever computed in parallel. If there are more of them
    than cores, all sleep between two pieces of work instead of spinning, and a model of 100 M parameters is
    1.7 times slower on two cores. So only the model's own thread may have helpers; it sets their number itself.

    Yields:
        The caller's previous number of threads: the maximum for the model's.
    """
    most = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield most
    finally:
        torch.set_num_threads(1)  # a new thread starts with the number set last by any thread


def worthwhile(runner: Runner, prompt: Prompt, rows: int, counts: Sequence[int]) -> int:
    """Return the fewest threads that take at most ``WORTH`` times the best time.

    The time is that of a step of all rows plus each row's share of reading its prompt. The calling thread's
    number of threads stays at the last one tried: set it afterwards.

    Args:
        runner: runner of a model on the CPU.
        prompt: any text.
        rows: rows of the batch.
        counts: candidate numbers of threads, ascending.
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
    """Return candidate numbers of threads, ascending up to ``most``; only ``most`` for a large model."""
    if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
        return [most]
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n < most] + [most]


def _shortest(act: Callable[[], object]) -> float:
    """Time the fastest of some runs, without the first."""
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
