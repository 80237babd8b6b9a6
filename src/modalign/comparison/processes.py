"""Jobs in processes of this machine, so that a crash does not affect the others."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from modalign.comparison.job import Job, JobResult, attempt
from modalign.comparison.runner import Watcher, forward, lost
from modalign.errors import ModalignError

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


def _work(job: Job, cache: Path, filled: bool, threads: int, channel: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        channel.send(("began",))
        failure = attempt(job, cache, filled, threads, channel)
        if failure is not None:
            channel.send(("failure", failure))
            sys.exit(1)
    except BrokenPipeError:  # the parent has gone
        os._exit(1)


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


class Processes:
    """Jobs in processes of this machine.

    Args:
        workers: number of processes.
        threads: per process.
        cache: of encoder features and tools' results.
        filled: whether the cache already contains everything the jobs need.
    """

    def __init__(self, workers: int, threads: int, cache: Path, *, filled: bool = False) -> None:
        self.workers, self.threads, self.cache, self.filled = workers, threads, cache, filled
        self.running: list[_Running] = []
        self.context: ForkServerContext | None = None

    def start(self, job: Job, watcher: Watcher) -> None:
        """Start a job's process.

        Raises:
            ModalignError: it cannot be started because the calling script has no main guard.
        """
        refuse_unguarded()
        self.context = self.context or _context(self.threads)
        receiver, sender = self.context.Pipe(duplex=False)
        told = (job, self.cache, self.filled, self.threads, sender)
        process = self.context.Process(target=_work, args=told, name=job.name, daemon=True)
        try:
            process.start()
        except (BrokenPipeError, EOFError) as error:  # it ended before reading its job
            raise ModalignError(_NEVER_BEGAN) from error
        sender.close()
        watcher.started(job)
        self.running.append(_Running(job, process, receiver))

    def ended(self, watcher: Watcher) -> list[tuple[Job, JobResult]]:
        """Wait a second at most, tell what running jobs say, and return those that ended."""
        _listen(self.running, watcher)
        over = [entry for entry in self.running if not entry.process.is_alive()]
        for entry in over:
            self.running.remove(entry)
        return [(entry.job, _result(entry, watcher)) for entry in over]

    def stop(self) -> None:
        """Kill all running jobs."""
        for entry in self.running:
            entry.process.kill()
            entry.process.join()
        self.running = []


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
                else:
                    forward(entry.job, message, watcher)
        except (EOFError, OSError):  # it has ended, possibly in the middle of a message
            entry.process.join()


def _result(entry: _Running, watcher: Watcher) -> JobResult:
    _listen([entry], watcher)
    result = entry.job.result()
    if result is not None:
        return result
    code = entry.process.exitcode
    if not entry.began and (code or 0) > 0:
        raise ModalignError(_NEVER_BEGAN)
    if entry.failure is None:
        return lost(entry.job, _death(code))
    return JobResult(method=entry.job.method, seed=entry.job.seed, failure=entry.failure)


def _death(code: int | None) -> str:
    """Explain why a process ended without a message."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, most likely)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"
