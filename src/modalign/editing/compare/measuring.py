"""Measure what a computation takes: seconds per stage, and its peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modalign.memory import peak_resident
from modalign.progress import Progress

REST = "rest"  # detecting the model's parts, hashing weights, checks of the finished patch


@dataclass
class StageClock:
    """A progress callback that also keeps time: what passes before a call counts towards the stage it names.

    Attributes:
        onward: the callback to which every call is passed on.
        seconds: stage -> seconds.
        values: number of values that were optimised; those found in the store are not reported.
    """

    onward: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    values: int = 0
    _since: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count time only inside the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._count(REST)

    def __call__(self, name: str, done: int, total: int) -> None:
        """Take a stage's report of how far it is."""
        self._count(name)
        self.values += name == "values"
        if self.onward:
            self.onward(name, done, total)

    def _count(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@dataclass
class Peak:
    """The most bytes held; None if they cannot be measured for this piece of work alone."""

    memory: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a piece of work: the device's on CUDA, else the process's.

    The process's peak can be reset on Linux only; elsewhere it would be that of the whole run.
    """
    found = Peak()
    resettable = _reset(device)
    yield found
    if not resettable:
        return
    on_cuda = device.type == "cuda"
    found.memory = torch.cuda.max_memory_allocated(device) if on_cuda else peak_resident()


def _reset(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return device.type == "cpu"
