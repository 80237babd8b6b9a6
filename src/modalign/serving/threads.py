"""How many threads a step of the batch is worth, measured on this machine before requests come.

Small models are slower with more threads, and a thread that works for nothing is taken from the event loop
and from whatever else runs here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.runners import Runner

WORTH = 1.3  # more threads must make a step at least so many times faster
LARGE = 500_000_000  # parameters: beyond, a step is long and always worth all threads
LENGTH, STEPS = 48, 5


def worthwhile(runner: Runner, prompt: Prompt, rows: int) -> int:
    """The fewest threads whose step takes at most ``WORTH`` times that of the best number.

    The calling thread's number of threads is left at the last one tried: set it afterwards.

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
    repeated = (prompt.ids * LENGTH)[:LENGTH]
    slots = Slots()
    read = runner.prefill([Prompt(repeated)])
    for _ in range(rows):
        slots.join(read.layers)
    ids = torch.full((rows,), repeated[0], device=runner.device)
    seconds = {}
    for count in counts:
        torch.set_num_threads(count)
        runner.step(ids, slots, read.memories * rows)
        times = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            runner.step(ids, slots, read.memories * rows)
            times.append(time.perf_counter() - begun)
        seconds[count] = min(times)
    best = min(seconds.values())
    return next(count for count in counts if seconds[count] <= WORTH * best)
