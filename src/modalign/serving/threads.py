"""Measure how many threads are worthwhile on this machine: before requests come, and while they are answered.

Small models are slower with more threads, a useless thread takes time from the event loop and from other
programs, and beside other programs two threads on two cores may be five times slower than one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from modalign.serving.requests import Prompt
from modalign.serving.slots import Slots

if TYPE_CHECKING:
    from modalign.serving.runners import Runner

WORTH = 1.1  # more threads must speed it up at least by this factor
LARGE = 20_000_000  # parameters; above this it begins with all threads
PROMPT, ANSWER = 48, 64  # tokens of the measured request
# Every number of threads is measured several times, so that a busy moment does not hit only one.
TURNS, TRIES = 4, 3

PIECES = 4  # of work, by which two numbers of threads are compared
ALIKE = 0.25  # relative difference of their sizes
HOPELESS = 2.5  # times the usual time: a trial ends at once
CHANGED = 1.5  # times the time at the last decision, either way: the load is another
SOON, LATE = 2.0, 120.0  # seconds between two trials, at least and at most


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


def candidates(most: int) -> list[int]:
    """Return candidate numbers of threads, ascending up to ``most``."""
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n < most] + [most]


def small(model: torch.nn.Module) -> bool:
    """Whether measuring at start is quick, and all threads may be more than are worthwhile."""
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGE


@dataclass
class _Kind:
    """One kind of work: its number of threads, and what is known of it.

    Attributes:
        count: the number.
        usual: seconds per unit of the last pieces.
        size: about how many units each was.
        odd: pieces of other sizes since the last of that one.
        normal: what was usual at the last decision.
        tried: a number on trial, and its seconds per unit.
        due: when another is tried.
        wait: seconds from a trial that changed nothing to the next.
        down: whether a smaller number is tried next.
    """

    count: int
    usual: deque[float] = field(default_factory=lambda: deque(maxlen=PIECES))
    size: int = 0
    odd: int = 0
    normal: float | None = None
    tried: int | None = None
    seconds: list[float] = field(default_factory=list)
    due: float = 0.0
    wait: float = SOON
    down: bool = True


class Threads:
    """The number of threads of the model's thread, by kind of work.

    While the model works, now and then the next smaller or larger number is tried for a few pieces of work, and
    kept if it is worthwhile: at once where the load changes (more rows, other programs), ever more rarely where
    it does not.

    Args:
        counts: numbers to choose from, ascending; one is never changed, and with none nothing is set.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = list(counts)
        self._first = self.counts[-1] if counts else 0
        self._kinds: dict[str, _Kind] = {}
        self._set: int | None = None
        self._barred: dict[int, float] = {}  # numbers that were hopeless, until when

    def begin(self, count: int) -> None:
        """Set the calling thread's number, with which every kind of work begins."""
        self._first = count
        self._use(count)

    def of(self, kind: str) -> int:
        """Return the number that a kind of work has now."""
        return self._kinds[kind].count if kind in self._kinds else self._first

    @contextmanager
    def work(self, kind: str, units: int) -> Iterator[None]:
        """Do a piece of work.

        Args:
            kind: pieces of one kind are compared.
            units: how much it is; pieces of about one size are compared.
        """
        if len(self.counts) < 2:
            yield
            return
        own = self._kinds.setdefault(kind, _Kind(self._first))
        begun = time.perf_counter()
        like = self._alike(own, units, begun)
        if like and own.tried is None and len(own.usual) == PIECES and begun >= own.due:
            self._try(own, begun)
        fresh = self._use(own.count if own.tried is None else own.tried)
        yield
        ended = time.perf_counter()
        if like:
            self._learn(own, (ended - begun) / units, fresh, ended)

    def _use(self, count: int) -> bool:
        """Set a number; whether it is another: helpers are made anew, and the first piece is slower."""
        if count == self._set:
            return False
        torch.set_num_threads(count)
        self._set = count
        return True

    def _alike(self, own: _Kind, units: int, now: float) -> bool:
        """Whether a piece is about as large as those before; a few others in a row begin anew."""
        if abs(units - own.size) <= ALIKE * own.size:
            own.odd = 0
            return True
        own.odd += 1
        if own.size and own.odd < PIECES:
            return False
        own.size, own.odd, own.tried, own.normal = units, 0, None, None
        own.usual.clear()
        own.due, own.wait = min(own.due, now + SOON), SOON
        return True

    def _try(self, own: _Kind, now: float) -> None:
        own.tried, own.seconds = self._next(own, now), []
        own.due = now + own.wait
        own.wait = min(2 * own.wait, LATE)

    def _next(self, own: _Kind, now: float) -> int | None:
        """Return a neighbour of the number, below and above in turn."""
        place = self.counts.index(own.count)
        own.down = not own.down
        near = (place + 1, place - 1) if own.down else (place - 1, place + 1)
        for other in near:
            if 0 <= other < len(self.counts) and self._barred.get(self.counts[other], 0) <= now:
                return self.counts[other]
        return None

    def _learn(self, own: _Kind, seconds: float, fresh: bool, now: float) -> None:
        """Take note of a piece's seconds per unit."""
        if own.tried is None:
            if not fresh:
                own.usual.append(seconds)
                self._look_for_change(own, now)
            return
        usual = median(own.usual)
        if seconds > HOPELESS * usual:
            self._barred[own.tried] = now + own.wait
            own.tried = None
            return
        if not fresh:
            own.seconds.append(seconds)
        if len(own.seconds) == PIECES:
            found = median(own.seconds)
            allowed = usual / WORTH if own.tried > own.count else usual * WORTH
            if found <= allowed:
                own.count, own.wait, own.due = own.tried, SOON, now
                own.usual = deque(own.seconds, maxlen=PIECES)
                own.down = not own.down  # the same way on
            own.tried, own.normal = None, median(own.usual)

    def _look_for_change(self, own: _Kind, now: float) -> None:
        """Try others soon if the usual time is another than at the last decision."""
        if len(own.usual) < PIECES:
            return
        usual = median(own.usual)
        if own.normal is None:
            own.normal = usual
        elif not own.normal / CHANGED < usual < own.normal * CHANGED:
            own.normal, own.wait, own.due = usual, SOON, now


def _shortest(act: Callable[[], object]) -> float:
    """Time the fastest of some runs, without the first."""
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
