"""What a Ray worker does for a comparison; this file imports little, so that a refusal costs little."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.cache import cache_directory
from modalign.files import appears, sha256
from modalign.runs import RECORD, WRITER

if TYPE_CHECKING:
    from modalign.comparison.job import Job

RESULT = "result.json"

Files = dict[str, bytes]
Copies = dict[str, list[Any]]  # path in the comparison's folder -> references to its chunks


@dataclass(frozen=True)
class Told:
    """What a worker is told.

    Attributes:
        folder: of the comparison, where it was asked for.
        method, seed, first: the job, as in :class:`~modalign.comparison.job.Job`.
        found: the result of the method's first training, if that is another job.
        token: SHA-256 of who writes to the folder: how another folder at the same path is told apart.
        cache: of who asks, used by machines that see the folder.
        node: that has filled it.
        cwd: for parts given by relative paths.
        threads, gpus: of the job.
        libraries: versions that the figures depend on.
    """

    folder: Path
    method: str
    seed: int
    first: int
    found: bytes | None
    token: str
    cache: Path
    node: str
    cwd: Path
    threads: int
    gpus: float
    libraries: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a worker returns.

    Attributes:
        failure: why the job failed.
        unseen: the folder is not there, and no copy was sent.
        files: path within the job's folder -> content, from a machine that does not see it.
    """

    failure: str | None = None
    unseen: bool = False
    files: Files = field(default_factory=dict)


class _Line:
    """Takes what a job says to who asked for it; a lost line does not end the job."""

    def __init__(self, ray: Any, post: Any, number: int) -> None:
        self.ray, self.post, self.number, self.cut = ray, post, number, False

    def send(self, message: Any, /) -> None:
        """Send a message."""
        if self.cut:
            return
        try:
            self.ray.get(self.post.put.remote(self.number, pickle.dumps(message)))
        except self.ray.exceptions.RayError:
            self.cut = True


def work(told: Told, copies: Copies | None, post: Any, number: int) -> Outcome:
    """Run a job."""
    import ray

    if not told.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as if there were none: they are others'
    if told.cwd.is_dir():
        os.chdir(told.cwd)
    here = socket.gethostname()
    if odd := _other_versions(told.libraries):
        return Outcome(
            f"{here} has other versions than this machine ({odd}): install the same ones"
        )
    sees = _sees(told)
    if not sees and copies is None:
        return Outcome(unseen=True)
    line = _Line(ray, post, number)
    line.send(("began", here))
    from modalign.comparison.job import Job, attempt

    if sees:
        filled = ray.get_runtime_context().get_node_id() == told.node
        job = Job(told.folder, told.method, told.seed, told.first)
        if job.before is not None:
            appears(job.before.run / RESULT)
        return Outcome(attempt(job, told.cache, filled, told.threads, line))
    with tempfile.TemporaryDirectory(prefix="modalign-ray-") as name:
        job = Job(Path(name), told.method, told.seed, told.first)
        _unpack(ray, told, copies or {}, job)
        failure = attempt(job, cache_directory(), False, told.threads, line)
        failure = failure and failure.replace(name, str(told.folder))
        return Outcome(failure, files=_written(job.run))


def _other_versions(libraries: dict[str, str]) -> str:
    own = {name: importlib.metadata.version(name) for name in libraries}
    return ", ".join(f"{n} {own[n]} instead of {v}" for n, v in libraries.items() if own[n] != v)


def _sees(told: Told) -> bool:
    """Whether this machine has the folder, and not only one at the same path."""
    try:
        return sha256(told.folder / WRITER) == told.token and (told.folder / RECORD).is_file()
    except OSError:
        return False


def _unpack(ray: Any, told: Told, copies: Copies, job: Job) -> None:
    """Write a comparison's folder from its copy."""
    for name, chunks in copies.items():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(ray.get(chunk))
    if job.before is not None and told.found is not None:
        job.before.run.mkdir(parents=True)
        (job.before.run / RESULT).write_bytes(told.found)


def _written(run: Path) -> Files:
    """Return the files that a job leaves, without what only a resumed training would read."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and not any(p.startswith("step-") for p in path.relative_to(run).parts)
    }
