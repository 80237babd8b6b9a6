"""Jobs as tasks on Ray: a worker gets the path of the comparison's folder, not the data.

A machine that sees the folder (shared storage) works in it. One that does not is sent a copy of the prepared data
and sends the job's files back. Either way the parts and the media must lie at the same paths everywhere.

A job whose machine or process is lost runs again elsewhere. Ray's own retries are not used: a job that takes more
memory than there is would be tried forever.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.clusters import Cluster, Post, connected, reason
from modalign.comparison.config import CompareConfig
from modalign.comparison.job import Job, JobResult
from modalign.comparison.prepared import DATA
from modalign.comparison.processes import Processes
from modalign.comparison.ray_worker import RESULT, Copies, Told, work
from modalign.comparison.runner import Pool, Watcher, forward, lost
from modalign.comparison.setting import installed
from modalign.errors import UsageError, first_line
from modalign.files import appears, sha256, write_atomically
from modalign.runs import RECORD, WRITER

TRIES = 3  # of a job whose machines are lost
CHUNK = 64 << 20  # bytes of a file that are in memory at a time
SECONDS_TO_END = 5  # for jobs to leave their folders before they are killed


@contextmanager
def pool_of(
    config: CompareConfig, out: Path, cache: Path, ray: str | Cluster | None
) -> Iterator[Pool]:
    """Return where the jobs of a comparison run; None: processes of this machine.

    Raises:
        UsageError: Ray is not installed or cannot be reached, or no machine has what a job asks for.
    """
    if ray is None:
        yield Processes(config.workers, config.threads, cache, filled=True)
        return
    cluster = Cluster(ray) if isinstance(ray, str) else ray
    with connected(cluster.address) as module:
        yield OnRay(module, cluster, config, out, cache)


@dataclass
class _Running:
    job: Job
    number: int
    tries: int = 0
    told_started: bool = False
    host: str = ""


class OnRay:
    """The jobs of a comparison as tasks on Ray.

    Args:
        ray: the module, connected.
        cluster: what a job gets.
        config: of the comparison.
        out: its folder.
        cache: of features, filled on this machine.

    Raises:
        UsageError: no machine has what a job asks for.
    """

    def __init__(
        self, ray: Any, cluster: Cluster, config: CompareConfig, out: Path, cache: Path
    ) -> None:
        self.ray, self.out, self.cache = ray, out.absolute(), cache.absolute()
        self.workers = config.jobs or 1 << 30  # the cluster says how many it takes
        self.threads = cluster.cpus or config.threads
        self.gpus = (
            cluster.gpus if cluster.gpus is not None else float(self._trains_on_gpus(config))
        )
        if not self._fits():
            raise UsageError(
                f"--ray {cluster.address}: no machine there has {self._wanted()} (--cpus-per-job, "
                "--gpus-per-job): 'ray status' shows what it has"
            )
        self.node = ray.get_runtime_context().get_node_id()
        resources = {"num_cpus": self.threads, "num_gpus": self.gpus}
        # A process per job: its peak of memory is the job's.
        self.work = ray.remote(max_retries=0, max_calls=1, **resources)(work)
        self.post = self._new_post()
        self.running: dict[Any, _Running] = {}
        self.copies: Copies | None = None
        self.number = 0
        self.said_waiting = False

    def _new_post(self) -> Any:
        """Start what takes messages on this machine, if the cluster lets it."""
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = affinity(self.node, soft=True)
        return self.ray.remote(num_cpus=0, scheduling_strategy=here)(Post).remote()

    def _trains_on_gpus(self, config: CompareConfig) -> bool:
        wanted = config.training.device.partition(":")[0]
        return wanted in ("auto", "cuda") and self.ray.cluster_resources().get("GPU", 0) >= 1

    def _fits(self) -> bool:
        """Whether any machine of the cluster could run a job."""
        owned = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return any(r.get("CPU", 0) >= self.threads and r.get("GPU", 0) >= self.gpus for r in owned)

    def _wanted(self) -> str:
        return f"{self.threads} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def start(self, job: Job, watcher: Watcher) -> None:
        """Hand a job to the cluster; it is told as started when a machine takes it."""
        self._submit(_Running(job, self.number))
        self.number += 1

    def _submit(self, entry: _Running) -> None:
        job, before = entry.job, entry.job.before
        told = Told(
            folder=self.out,
            method=job.method,
            seed=job.seed,
            first=job.first,
            found=(before.run / RESULT).read_bytes() if before else None,
            token=sha256(self.out / WRITER),
            cache=self.cache,
            node=self.node,
            cwd=Path.cwd(),
            threads=self.threads,
            gpus=self.gpus,
            libraries=installed(),
        )
        handle = self.work.remote(told, self.copies, self.post, entry.number)
        self.running[handle] = entry

    def ended(self, watcher: Watcher) -> list[tuple[Job, JobResult]]:
        """Wait a second at most, tell what running jobs say, and return those that ended."""
        over, _ = self.ray.wait(list(self.running), timeout=1.0)
        self._listen(watcher)
        found = []
        for handle in over:
            entry = self.running.pop(handle)
            if (result := self._result(entry, handle, watcher)) is not None:
                if not entry.told_started:
                    watcher.started(entry.job)
                found.append((entry.job, result))
        self._say_if_waiting(watcher)
        return found

    def _listen(self, watcher: Watcher) -> None:
        entries = {entry.number: entry for entry in self.running.values()}
        try:
            messages = self.ray.get(self.post.take.remote())
        except (
            self.ray.exceptions.RayError
        ):  # lost with its machine: running jobs go on without a word
            self.post = self._new_post()
            return
        for number, content in messages:
            if (entry := entries.get(number)) is None:
                continue
            message = pickle.loads(content)  # of this program's own worker
            if message[0] == "began":
                entry.host, entry.told_started = message[1], True
                watcher.started(entry.job)
            else:
                forward(entry.job, message, watcher)

    def _result(self, entry: _Running, handle: Any, watcher: Watcher) -> JobResult | None:
        """Return a job's result; None: it was handed out again."""
        job, errors = entry.job, self.ray.exceptions
        try:
            outcome = self.ray.get(handle)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            return self._failed(job, f"{self._host(entry)}: {reason(error)}")
        except errors.RayError as error:
            return self._again(entry, first_line(error), watcher)
        if outcome.unseen:
            self.copies = self.copies or self._copied()
            self._submit(entry)
            return None
        for name, content in outcome.files.items():
            path = job.run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        if outcome.failure is not None:
            return self._failed(job, outcome.failure)
        appears(job.run / RESULT)
        return job.result() or lost(job, f"{job.run / RESULT} does not appear on this machine")

    def _again(self, entry: _Running, why: str, watcher: Watcher) -> JobResult | None:
        entry.tries += 1
        if entry.tries == TRIES:
            return lost(entry.job, f"it was lost {TRIES} times with its process or machine ({why})")
        where = self._host(entry)
        watcher.decided(f"{entry.job.name}: lost with its process on {where}; it runs again")
        self._submit(entry)
        return None

    @staticmethod
    def _host(entry: _Running) -> str:
        return entry.host or "a machine of the cluster"

    @staticmethod
    def _failed(job: Job, why: str) -> JobResult:
        return JobResult(method=job.method, seed=job.seed, failure=why)

    def _copied(self) -> Copies:
        """Put what jobs read of the folder where all machines find it, a chunk at a time."""
        files = [self.out / RECORD, *sorted((self.out / DATA).iterdir())]
        return {str(path.relative_to(self.out)): list(self._chunks(path)) for path in files}

    def _chunks(self, path: Path) -> Iterator[Any]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield self.ray.put(chunk)

    def _say_if_waiting(self, watcher: Watcher) -> None:
        waiting = bool(self.running) and not self._fits()
        if waiting and not self.said_waiting:
            watcher.decided(
                f"no machine of the cluster is left with {self._wanted()}: waiting for one"
            )
        self.said_waiting = waiting

    def stop(self) -> None:
        """End all running jobs: interrupted, so that they leave their folders, then killed."""
        handles = list(self.running)
        for force in (False, True):
            for handle in handles:
                self.ray.cancel(handle, force=force)
            if handles and not force:
                _, handles = self.ray.wait(
                    handles, num_returns=len(handles), timeout=SECONDS_TO_END, fetch_local=False
                )
        self.running = {}
