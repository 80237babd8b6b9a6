"""Where clients train: one after another in this process, or as tasks on Ray, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from safetensors.torch import load, save

from modalign.clusters import connected, reason
from modalign.data.supervision import Sample
from modalign.errors import first_line
from modalign.federation.config import FederateConfig
from modalign.federation.rules import Tensors
from modalign.federation.workplace import Task, Workplace

Answer = Tensors | str  # a client's tensors, or why it did not answer


class Pool(Protocol):
    """Runs clients' tasks."""

    def run(self, place: Workplace, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer]]:
        """Yield every task with its answer."""


class Here:
    """Runs one client after another, in this process."""

    def run(self, place: Workplace, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer]]:
        """Yield every task with its answer."""
        for task in tasks:
            try:
                answer: Answer = place.train(task)
            except Exception as error:  # a client that dies must not end the others
                answer = f"{type(error).__name__}: {first_line(error)}"
            yield task, answer


_PLACES: dict[tuple[str, int], Workplace] = {}  # kept by a worker between tasks


def _work(
    config: FederateConfig, seed: int, samples: list[Sample], task: Task, start: bytes, threads: int
) -> bytes:
    """Train a client in a worker; tensors travel as safetensors."""
    torch.set_num_threads(threads)  # rounding of sums depends on how threads divide them
    key = (config.model_dump_json(), seed)
    if key not in _PLACES:
        _PLACES.clear()
        _PLACES[key] = Workplace(config, seed, samples)
    return save(_PLACES[key].train(_with(task, load(start))))


def _without(task: Task) -> tuple[Task, bytes]:
    whole = {f"tensors/{n}": t for n, t in task.tensors.items()}
    whole |= {f"base/{n}": t for n, t in task.base.items()}
    return replace(task, tensors={}, base={}), save(whole)


def _with(task: Task, tensors: Tensors) -> Task:
    parts: dict[str, Tensors] = {"tensors": {}, "base": {}}
    for name, tensor in tensors.items():
        kind, _, own = name.partition("/")
        parts[kind][own] = tensor
    return replace(task, tensors=parts["tensors"], base=parts["base"])


class OnRay:
    """Runs clients as Ray tasks; on several machines, the parts' folders must be at the same paths."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.work = ray.remote(num_cpus=1, max_retries=0)(_work)
        self.shared: dict[int, tuple[Any, Any]] = {}

    def run(self, place: Workplace, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer]]:
        """Yield every task with its answer."""
        config, samples = self._shared(place)
        threads = torch.get_num_threads()
        waiting = {}
        for task in tasks:
            bare, start = _without(task)
            handle = self.work.remote(config, place.seed, samples, bare, start, threads)
            waiting[handle] = task
        while waiting:
            done, _ = self.ray.wait(list(waiting))
            for handle in done:
                task = waiting.pop(handle)
                try:
                    answer: Answer = load(self.ray.get(handle))
                except self.ray.exceptions.RayError as error:
                    answer = reason(error)
                yield task, answer

    def _shared(self, place: Workplace) -> tuple[Any, Any]:
        if id(place) not in self.shared:
            put = self.ray.put
            self.shared = {id(place): (put(place.config), put(list(place.samples)))}
        return self.shared[id(place)]


@contextmanager
def pool_of(address: str | None) -> Iterator[Pool]:
    """Open the pool that ``--ray`` names; None for this process.

    Raises:
        UsageError: Ray is not installed, or cannot be reached.
    """
    if address is None:
        yield Here()
        return
    with connected(address) as ray:
        yield OnRay(ray)
