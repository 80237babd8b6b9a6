"""Ray: connected to by an address or started here, with what goes wrong said in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from modalign.errors import UsageError, extra, first_line


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and what each of them gets.

    Attributes:
        address: ``local``, ``auto`` or a cluster's.
        cpus: of a job, which are its threads; None: as many as it would get on this machine.
        gpus: of a job; a part of one where several share it. None: one where this machine trains on a GPU.
    """

    address: str
    cpus: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise UsageError(f"--cpus-per-job {self.cpus}: give 1 or more")
        if self.gpus is not None and self.gpus < 0:
            raise UsageError(f"--gpus-per-job {self.gpus:g}: give 0 or more")


class Post:
    """An actor that holds workers' messages until they are fetched.

    Messages are bytes, and the class lies here, so that the actor's process imports nothing large.
    """

    def __init__(self) -> None:
        self.held: list[tuple[int, bytes]] = []

    def put(self, number: int, message: bytes) -> None:
        """Add a worker's message."""
        self.held.append((number, message))

    def take(self) -> list[tuple[int, bytes]]:
        """Return all messages since the last call."""
        held, self.held = self.held, []
        return held


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Return the module ``ray``, connected for as long as the block lasts.

    A connection that the program has already is used, and left.

    Raises:
        UsageError: Ray is not installed, or cannot be reached.
    """
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(f"--ray needs Ray: {extra('ray')}") from None
    if ray.is_initialized():
        yield ray
        return
    _keep_off_standard_output(ray)
    local = {"num_cpus": os.cpu_count()} if address == "local" else {"address": address}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def reason(error: Exception) -> str:
    """Return why a task failed, in one line; Ray wraps the task's own error."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        UsageError: it cannot be reached.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--ray {address}: nothing answers there ({first_line(error)}); 'ray start --head' on one machine "
            "prints the address, --ray local starts one here"
        ) from error


def _keep_off_standard_output(ray: Any) -> None:
    """Ray prints what becomes of its machines to standard output, where results go, whatever it is told."""
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
