"""Run jobs in parallel, each in its own process, so that a crash does not affect the others."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from modalign.comparison.job import Job, JobResult, run_job
from modalign.errors import ModalignError
from modalign.training.trainable import PartCount


@dataclass(frozen=True)
class JobProgress:
    """Progress of a running job."""

    job: Job
    stage: str
    fraction: float
    loss: float
    samples: int


UNGUARDED = (
    "training runs in processes of its own, and each of them imports the script that was started: "
    "guard your script with if __name__ == '__main__':"
)
_NEVER_BEGAN = f"a process ended before its work began (its own error is above): {UNGUARDED}"


def refuse_unguarded() -> None:
    """Raise an error in a process that is still importing its parent's script.

    Raises:
        ModalignError: how to write the script.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ModalignError(UNGUARDED)


class Watcher(Protocol):
    """Receives events of the jobs (a live table, a log, or nothing)."""

    def started(self, job: Job) -> None:
        """A job's process was started."""

    def described(self, job: Job, parts: list[PartCount]) -> None:
        """A job described its trainable parts."""

    def advanced(self, progress: JobProgress) -> None:
        """A running job made progress."""

    def finished(self, job: Job, result: JobResult) -> None:
        """A job ended, well or not."""

    def decided(self, said: str) -> None:
        """The race decided what to train next, or to stop."""


class Silent:
    """Ignores all events."""

    def started(self, *_: Any, **__: Any) -> None:
        """Ignore whatever happens."""

    described = advanced = finished = decided = started


def _context(threads: int) -> ForkServerContext:
    """Return a context that forks workers from a server that has imported torch but never used it.

    The server reads the number of threads from its environment. If it is set later, some libraries still start one
    thread per core, and the competing processes become many times slower.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modalign.comparison.job"])
    if threading.current_thread() is not threading.main_thread():
        return context  # only that one may set signal handlers
    # Ctrl-C in the terminal reaches the whole process group. Workers ignore it from before their first import, so
    # that the parent decides what happens to its jobs.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def _work(job: Job, cache: Path, filled: bool, channel: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        channel.send(("began",))
        _run_and_tell(job, cache, filled, channel)
    except BrokenPipeError:  # the parent has gone
        os._exit(1)


def _run_and_tell(job: Job, cache: Path, filled: bool, channel: Connection) -> None:
    """Run a job; report failures, and write unexpected ones to a file in full."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        run_job(job.folder, job.key, cache=cache, filled=filled, channel=channel)
    except ModalignError as error:
        channel.send(("failure", str(error)))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        raise
    except Exception as error:
        record = job.run / "error.txt"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(traceback.format_exc(), encoding="utf-8")
        channel.send(("failure", f"{type(error).__name__}: {error} (in full in {record})"))
        sys.exit(1)


def _end_with_parent() -> None:
    """Exit at once if the parent has gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    channel: Connection
    failure: str | None = None
    began: bool = False


def run_jobs(
    jobs: Iterable[Job],
    workers: int,
    threads: int,
    cache: Path,
    watcher: Watcher | None = None,
    *,
    filled: bool = False,
) -> dict[Job, JobResult]:
    """Run jobs; finished ones are read from their folders, and a job waits for its learning rate.

    Args:
        jobs: jobs to run; a worker gets only a job's folder and key.
        workers: number of processes.
        threads: per process.
        cache: of encoder features and tools' results.
        watcher: receives events of the jobs.
        filled: whether the cache already contains everything the jobs need.

    Returns:
        Results by job, including failed ones (see their ``failure``).

    Raises:
        ModalignError: processes cannot be started because the calling script has no main guard.
    """
    refuse_unguarded()
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
    context = _context(threads)
    running: list[_Running] = []
    try:
        while waiting or running:
            for job in _ready(waiting, running)[: workers - len(running)]:
                waiting.remove(job)
                if (failed := _without_rate(job, results)) is not None:
                    results[job] = failed
                    watcher.finished(job, failed)
                    continue
                running.append(_start(context, (job, cache, filled), watcher))
            if running:
                _listen(running, watcher)
            for entry in [entry for entry in running if not entry.process.is_alive()]:
                running.remove(entry)
                results[entry.job] = _finish(entry, watcher)
    finally:
        for entry in running:
            entry.process.kill()
            entry.process.join()
    return results


def _ready(waiting: list[Job], running: list[_Running]) -> list[Job]:
    """Return the waiting jobs whose learning rate is known or cannot be found."""
    unfinished = {*waiting, *(entry.job for entry in running)}
    return [job for job in waiting if job.before not in unfinished]


def _without_rate(job: Job, results: dict[Job, JobResult]) -> JobResult | None:
    """Return the result of a job whose learning rate was not found."""
    first = results.get(job.before) if job.before else None
    if first is None or first.failure is None:
        return None
    reason = f"its first training, which finds the learning rate, failed: {first.failure}"
    return JobResult(method=job.method, seed=job.seed, failure=reason)


def _start(context: ForkServerContext, told: tuple[Job, Path, bool], watcher: Watcher) -> _Running:
    job = told[0]
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(*told, sender), name=job.name, daemon=True)
    try:
        process.start()
    except (BrokenPipeError, EOFError) as error:  # it ended before reading its job
        raise ModalignError(_NEVER_BEGAN) from error
    sender.close()
    watcher.started(job)
    return _Running(job, process, receiver)


def _listen(running: list[_Running], watcher: Watcher) -> None:
    """Wait for messages or exits, and forward messages."""
    sentinels = [entry.process.sentinel for entry in running]
    multiprocessing.connection.wait(
        [*(entry.channel for entry in running), *sentinels], timeout=1.0
    )
    for entry in running:
        try:
            while entry.channel.poll():
                message = entry.channel.recv()
                if message[0] == "began":
                    entry.began = True
                elif message[0] == "failure":
                    entry.failure = message[1]
                elif message[0] == "parts":
                    watcher.described(entry.job, message[1])
                else:
                    watcher.advanced(JobProgress(entry.job, *message))
        except (EOFError, OSError):  # it has ended, possibly in the middle of a message
            entry.process.join()


def _finish(entry: _Running, watcher: Watcher) -> JobResult:
    _listen([entry], watcher)
    result = entry.job.result()
    if result is None:
        if not entry.began and (entry.process.exitcode or 0) > 0:
            raise ModalignError(_NEVER_BEGAN)
        reason = entry.failure or _death(entry.process.exitcode)
        result = JobResult(method=entry.job.method, seed=entry.job.seed, failure=reason)
    watcher.finished(entry.job, result)
    return result


def _death(code: int | None) -> str:
    """Explain why a process ended without a message."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, most likely)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}; 'modalign compare --resume' tries it again"
    return f"its process ended with exit code {code}; 'modalign compare --resume' tries it again"
