"""A comparison's trainings on a Ray cluster: the same bits as here, whatever is lost on the way."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from compared import Compared
from modalign.clusters import Cluster, Post, connected
from modalign.comparison import on_ray
from modalign.comparison.compare import compare
from modalign.comparison.config import CompareConfig
from modalign.comparison.job import Job, JobResult, load_scores
from modalign.comparison.on_ray import TRIES, OnRay
from modalign.comparison.runner import JobProgress, Silent, run_jobs
from modalign.errors import UsageError
from modalign.runs import RECORD, WRITER

WIDE: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "num_cpus": 1}


class Heard(Silent):
    """Remembers what it is told, and does something when so many jobs have started."""

    def __init__(self, count: int = 0, then: Any = None) -> None:
        self.count, self.then = count, then
        self.began: list[Job] = []
        self.said: list[str] = []
        self.last = 0.0

    def advanced(self, progress: JobProgress) -> None:
        self.last = progress.fraction

    def started(self, job: Job) -> None:
        self.began.append(job)
        if len(self.began) == self.count:
            self.then()

    def decided(self, said: str) -> None:
        self.said.append(said)


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster of two machines with a CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray gives its own processes seconds to start, which may be too few on a busy machine.
    for _ in range(3):
        made = Machines()
        try:
            made.add_node(no_monitor=True, **WIDE)
            made.second = made.add_node(**WIDE)
            break
        except Exception as error:
            made.shutdown()
            late = error
    else:
        pytest.skip(f"Ray could not be started here: {late}")
    yield made
    made.shutdown()


def assert_same(job: Job, compared: Compared) -> None:
    """Weights and every answer, bit for bit."""
    there = Job(compared.out, job.method, job.seed)
    mine, theirs = load_file(job.run / "trained.safetensors"), there.run / "trained.safetensors"
    assert {n: t.numpy().tobytes() for n, t in mine.items()} == {
        n: t.numpy().tobytes() for n, t in load_file(theirs).items()
    }
    scores = load_scores(there.run)
    assert {n: s.tobytes() for n, s in load_scores(job.run).items()} == {
        n: s.tobytes() for n, s in scores.items()
    }
    found, known = job.result(), there.result()
    assert found is not None
    assert known is not None
    for field in ("val_loss", "samples", "flops", "learning_rate", "factor", "examples", "mir"):
        assert getattr(found, field) == getattr(known, field), field


def run(machines: Any, compared: Compared, out: Path, watcher: Silent, **changes: Any) -> Any:
    place = Cluster(machines.address, cpus=1)
    return compare(
        compared.config_file,
        out=out,
        cache=compared.cache,
        ray=place,
        watcher=watcher,
        **changes,
    )


def test_an_interrupted_comparison_leaves_nothing_running(
    machines: Any, compared: Compared, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(machines, compared, tmp_path / "out", Heard(1, interrupt), methods=["linear"])
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if words and "ray::work" in words[0]]


def test_figures_are_the_same_when_a_machine_is_lost(
    machines: Any, compared: Compared, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both trainings run, one on each machine, when the second machine is killed."""

    def kill() -> None:
        machines.remove_node(machines.second, allow_graceful=False)

    heard = Heard(2, kill)
    chosen = ["linear", "gated_cross_attention"]
    found = run(machines, compared, tmp_path / "out", heard, methods=chosen, seeds=1)
    jobs = [Job(tmp_path / "out", name, 0) for name in chosen]
    for job in jobs:
        assert_same(job, compared)
    again = [said for said in heard.said if "it runs again" in said]
    assert len(again) == 1
    assert found.setting.threads == 1
    assert capfd.readouterr().out == ""


# ---------------------------------------------------------------------- without a cluster


class Inline:
    """Stands in for the module: a task is run at once, in this process."""

    exceptions = SimpleNamespace(
        RayTaskError=OSError, RuntimeEnvSetupError=OSError, RayError=OSError
    )
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
    )

    def __init__(self) -> None:
        self.put_back: list[bytes] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def put(self, chunk: bytes) -> bytes:
        self.put_back.append(chunk)
        return chunk

    def remote(self, **_: Any) -> Any:
        return lambda thing: SimpleNamespace(remote=partial(self._call, thing))

    def _call(self, thing: Any, *arguments: Any) -> Any:
        made = thing(*arguments)
        if isinstance(made, Post):
            return SimpleNamespace(
                **{n: SimpleNamespace(remote=getattr(made, n)) for n in ("put", "take")}
            )
        return Done(made)

    def wait(self, handles: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return handles, []

    def get(self, given: Any) -> Any:
        return given.made if isinstance(given, Done) else given

    def cancel(self, *_: Any, **__: Any) -> None:
        pass


class Done:
    """The handle of a task that has ended."""

    def __init__(self, made: Any) -> None:
        self.made = made


def test_a_machine_that_does_not_see_the_folder_sends_its_results(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data in pieces, and the second training with the first one's learning rate."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(on_ray, "sha256", lambda _: "of another folder at this path")
    monkeypatch.setattr(on_ray, "CHUNK", 1000)
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    for name in (RECORD, *(f"data/{file.name}" for file in (compared.out / "data").iterdir())):
        shutil.copy(compared.out / name, out / name)
    first, job = (Job(out, "gated_cross_attention", seed) for seed in (0, 1))
    shutil.copytree(Job(compared.out, first.method, 0).run, first.run)
    ray, heard = Inline(), Heard()
    monkeypatch.setitem(sys.modules, "ray", ray)
    pool = OnRay(ray, Cluster("local", cpus=1), compared.config, out, compared.cache)
    found = run_jobs([first, job], pool, heard)
    assert found[job].failure is None
    assert_same(job, compared)
    assert not list(job.run.rglob("step-*"))
    assert heard.began == [job]
    assert heard.last > 0
    assert len(ray.put_back) > 4
    assert max(map(len, ray.put_back)) <= 1000


class Nowhere:
    """Stands in for the module: every job is lost with its machine."""

    def __init__(self, gpus: int = 0) -> None:
        from ray import exceptions
        from ray.util import scheduling_strategies

        self.exceptions = exceptions
        self.util = SimpleNamespace(scheduling_strategies=scheduling_strategies)
        self.gpus, self.handed = gpus, 0
        self.options: list[dict[str, Any]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": self.gpus}},
                {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]  # fmt: skip

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": self.gpus}

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def remote(self, **options: Any) -> Any:
        self.options.append(options)
        return lambda thing: SimpleNamespace(remote=partial(self._hand, thing))

    def _hand(self, thing: Any, *_: Any) -> Any:
        self.handed += thing is not Post
        return Handle()

    def wait(self, handles: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return handles, []

    def get(self, handle: Any) -> Any:
        raise self.exceptions.WorkerCrashedError

    def cancel(self, *_: Any, **__: Any) -> None:
        pass


class Handle:
    """Of a job, or of the actor that takes messages."""

    take = SimpleNamespace(remote=lambda: None)


@pytest.fixture
def config() -> CompareConfig:
    return CompareConfig.model_validate(
        {"parts": {"llm": "l", "encoder": {"image": "e"}}, "data": {"train": "t"}, "jobs": 3}
    )


def test_a_job_that_is_always_lost_ends(config: CompareConfig, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / WRITER).touch()
    ray, heard = Nowhere(), Heard()
    pool = OnRay(ray, Cluster("local", cpus=1), config, tmp_path, tmp_path)
    job = Job(tmp_path, "linear", 0)
    pool.start(job, heard)
    found: list[tuple[Job, JobResult]] = []
    for _ in range(TRIES):
        assert not found
        found = pool.ended(heard)
    assert ray.handed == TRIES
    assert found[0][0] == job
    assert "it was lost 3 times" in str(found[0][1].failure)
    assert heard.began == [job]
    assert pool.workers == 3
    pool.stop()


@pytest.mark.parametrize(
    ("gpus", "cluster", "asked"),
    [
        (0, Cluster("local", cpus=2), 0),
        (4, Cluster("local", cpus=2), 1),  # device: auto
        (4, Cluster("local", cpus=2, gpus=0.5), 0.5),
    ],
)
def test_what_a_job_gets(
    config: CompareConfig, tmp_path: Path, gpus: int, cluster: Cluster, asked: float
) -> None:
    pytest.importorskip("ray")
    ray = Nowhere(gpus)
    assert OnRay(ray, cluster, config, tmp_path, tmp_path).threads == 2
    assert ray.options[0] == {"max_retries": 0, "max_calls": 1, "num_cpus": 2, "num_gpus": asked}


@pytest.mark.parametrize("cluster", [Cluster("a:1", cpus=3), Cluster("a:1", cpus=1, gpus=1)])
def test_what_no_machine_has_is_refused(
    config: CompareConfig, tmp_path: Path, cluster: Cluster
) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"no machine there has . CPUs"):
        OnRay(Nowhere(), cluster, config, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus-per-job", "1"], "add --ray"),
        (["--ray", "local", "--dry-run"], "leave --ray out"),
        (["--ray", "local", "--cpus-per-job", "0"], "1 or more"),
        (["--ray", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_options_that_say_nothing_are_refused(
    cli: Any, tmp_path: Path, options: Any, said: str
) -> None:
    code, _, err = cli("compare", *options, "--out", tmp_path / "out")
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"--ray needs Ray: pip install '\.\[ray\]'"),
        connected("local"),
    ):
        pass
