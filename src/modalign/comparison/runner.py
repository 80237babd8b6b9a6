"""Run jobs in the order in which they can be run, wherever they run, and tell a watcher."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from modalign.comparison.job import Job, JobResult
from modalign.training.trainable import PartCount


@dataclass(frozen=True)
class JobProgress:
    """Progress of a running job."""

    job: Job
    stage: str
    fraction: float
    loss: float
    samples: int


class Watcher(Protocol):
    """Receives events of the jobs (a live table, a log, or nothing)."""

    def started(self, job: Job) -> None:
        """A job began to run."""

    def described(self, job: Job, parts: list[PartCount]) -> None:
        """A job described its trainable parts."""

    def advanced(self, progress: JobProgress) -> None:
        """A running job made progress."""

    def finished(self, job: Job, result: JobResult) -> None:
        """A job ended, well or not."""

    def decided(self, said: str) -> None:
        """What was decided on the way: what to train next, to stop, or where to run a job again."""


class Silent:
    """Ignores all events."""

    def started(self, *_: Any, **__: Any) -> None:
        """Ignore whatever happens."""

    described = advanced = finished = decided = started


class Pool(Protocol):
    """Where jobs run: processes of this machine, or a cluster's.

    Attributes:
        workers: jobs at a time.
    """

    workers: int

    def start(self, job: Job, watcher: Watcher) -> None:
        """Start a job."""

    def ended(self, watcher: Watcher) -> list[tuple[Job, JobResult]]:
        """Wait a second at most, tell what running jobs say, and return those that ended."""

    def stop(self) -> None:
        """End all running jobs."""


def run_jobs(
    jobs: Iterable[Job], pool: Pool, watcher: Watcher | None = None
) -> dict[Job, JobResult]:
    """Run jobs; finished ones are read from their folders, and a job waits for its learning rate.

    Args:
        jobs: jobs to run; a worker gets only a job's folder and key.
        pool: that runs them.
        watcher: receives events of the jobs.

    Returns:
        Results by job, including failed ones (see their ``failure``).

    Raises:
        ModalignError: processes cannot be started because the calling script has no main guard.
    """
    watcher = watcher or Silent()
    results: dict[Job, JobResult] = {}
    waiting: list[Job] = []
    for job in jobs:
        known = job.result()
        if known is not None:
            results[job] = known
            watcher.finished(job, known)
        else:
            waiting.append(job)
    running: set[Job] = set()
    try:
        while waiting or running:
            for job in _ready(waiting, running)[: pool.workers - len(running)]:
                waiting.remove(job)
                if (failed := _without_rate(job, results)) is not None:
                    results[job] = failed
                    watcher.finished(job, failed)
                    continue
                pool.start(job, watcher)
                running.add(job)
            for job, result in pool.ended(watcher) if running else ():
                running.remove(job)
                results[job] = result
                watcher.finished(job, result)
    finally:
        pool.stop()
    return results


def _ready(waiting: list[Job], running: Collection[Job]) -> list[Job]:
    """Return the waiting jobs whose learning rate is known or cannot be found."""
    unfinished = {*waiting, *running}
    return [job for job in waiting if job.before not in unfinished]


def _without_rate(job: Job, results: dict[Job, JobResult]) -> JobResult | None:
    """Return the result of a job whose learning rate was not found."""
    first = results.get(job.before) if job.before else None
    if first is None or first.failure is None:
        return None
    reason = f"its first training, which finds the learning rate, failed: {first.failure}"
    return JobResult(method=job.method, seed=job.seed, failure=reason)


def forward(job: Job, message: Any, watcher: Watcher) -> None:
    """Tell a watcher what a job said of its training."""
    if message[0] == "parts":
        watcher.described(job, message[1])
    else:
        watcher.advanced(JobProgress(job, *message))


def lost(job: Job, reason: str) -> JobResult:
    """Return the result of a job that ended without one."""
    words = f"{reason}; 'modalign compare --resume' tries it again"
    return JobResult(method=job.method, seed=job.seed, failure=words)
