"""How many threads the batch is worth, measured on this machine before requests come.

Small models are slower with more threads, and a thread that works for nothing is taken from the event loop
and from whatever else runs here.
"""

from __future__ import annotations

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
TRIES = 6


def worthwhile(runner: Runner, prompt: Prompt, rows: int) -> int:
    """The fewest threads that take at most ``WORTH`` times the time of the best number.

    What counts is a step of all rows with each row's share of reading its prompt. The calling thread's
    number of threads is left at the last one tried: set it afterwards.

    Args:
        runner: of a model on the CPU.
        prompt: any text.
        rows: of the batch.
    """
    most = torch.get_num_threads()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < most] + [most]
    size = sum(parameter.numel() for parameter in runner.model.parameters())
    if len(counts) == 1 or size > LARGE:
        return most
    repeated = Prompt((prompt.ids * PROMPT)[:PROMPT])
    slots = Slots()
    read = runner.prefill([repeated])
    for _ in range(rows):
        slots.join(read.layers)
    ids = torch.full((rows,), repeated.ids[0], device=runner.device)
    seconds = {}
    for count in counts:
        torch.set_num_threads(count)
        reading = _shortest(lambda: runner.prefill([repeated]))
        step = _shortest(lambda: runner.step(ids, slots, read.memories * rows))
        seconds[count] = step + reading * rows / ANSWER
    best = min(seconds.values())
    return next(count for count in counts if seconds[count] <= WORTH * best)


def _shortest(act: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, the first left out."""
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
