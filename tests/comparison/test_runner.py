"""Jobs in processes of their own: whatever one dies of, the others go on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import pytest
import yaml

from compared import Compared
from modalign.comparison.job import Job, JobResult, load_scores, run_job
from modalign.comparison.prepared import StoredData
from modalign.comparison.processes import Processes
from modalign.comparison.runner import JobProgress, Silent, run_jobs
from modalign.errors import ModalignError, UsageError
from modalign.runs import RECORD
from modalign.training.recipes import select
from modalign.training.settings import Stage


class Recorder(Silent):
    def __init__(self) -> None:
        self.ended: dict[Job, JobResult] = {}
        self.fractions: list[float] = []

    def advanced(self, progress: JobProgress) -> None:
        self.fractions.append(progress.fraction)

    def finished(self, job: Job, result: JobResult) -> None:
        self.ended[job] = result


@pytest.fixture(scope="module")
def jobs(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """One job in a folder of its own each; the first seed's learning rate is known already."""
    out = tmp_path_factory.mktemp("runner")
    prepared = compared.prepared()
    splits = replace(
        prepared.splits,
        train=prepared.splits.train[:64],
        val=prepared.splits.val[:8],
        evaluation=prepared.splits.evaluation[:8],
    )
    whole = compared.config.model_copy(update={"methods": ["linear"], "budget": "32samples"})
    rates = whole.training.learning_rates.model_copy(update={"connector": 1e38, "llm": 1e38})
    absurd = whole.training.model_copy(update={"learning_rates": rates})

    def job(name: str, **changes: object) -> Job:
        config = whole.model_copy(update=changes)
        replace(prepared, config=config, splits=splits, out=out / name).store()
        (out / name / RECORD).write_text(yaml.safe_dump(config.model_dump(mode="json")))
        first = Job(out / name, "linear", 0)
        first.run.mkdir(parents=True)
        (first.run / "result.json").write_text(JobResult(method="linear", seed=0).model_dump_json())
        return Job(out / name, "linear", 1)

    def broken(name: str) -> Job:
        parts = whole.parts.model_copy(update={"encoder": {"image": f"breaking_parts:{name}"}})
        return job(name, parts=parts)

    return [
        *(broken(name) for name in ("Killed", "Refused", "Defective")),
        job("absurd", training=absurd, budget="200samples"),
        job("fine"),
    ]


def told(
    jobs: list[Job], compared: Compared, watcher: Silent | None = None
) -> dict[Job, JobResult]:
    return run_jobs(jobs, Processes(2, 1, compared.cache), watcher)


@pytest.fixture(scope="module")
def ran(jobs: list[Job], compared: Compared) -> tuple[dict[Job, JobResult], Recorder]:
    watcher = Recorder()
    return told(jobs, compared, watcher), watcher


def test_each_failure_says_why(ran, jobs: list[Job]):
    failures = [ran[0][job].failure for job in jobs]
    killed, refused, defective, absurd, fine = failures
    assert "SIGKILL (out of memory, most likely)" in killed
    assert "this encoder cannot be used; choose another" in refused
    assert "ZeroDivisionError: a defect" in defective
    assert "Traceback" in (jobs[2].run / "error.txt").read_text()
    assert "at step" in absurd
    known = {sample.record.id for sample in StoredData.read(jobs[3].folder).train}
    assert any(name in absurd for name in known)
    assert fine is None


def test_the_others_go_on_and_everybody_is_told(ran, jobs: list[Job]):
    results, watcher = ran
    assert watcher.ended == results
    assert len(load_scores(jobs[-1].run)["eval"]) == 8
    assert results[jobs[-1]].samples >= 24


def test_failed_jobs_leave_no_result_and_finished_ones_are_kept(
    ran, jobs: list[Job], compared: Compared
):
    assert [job.result() is None for job in jobs] == [True, True, True, True, False]
    before = (jobs[-1].run / "result.json").stat().st_mtime_ns
    assert told(jobs[-1:], compared) == {jobs[-1]: ran[0][jobs[-1]]}
    assert (jobs[-1].run / "result.json").stat().st_mtime_ns == before


def test_another_process_finds_the_same_from_the_folder_alone(
    ran, jobs: list[Job], tmp_path, monkeypatch
):
    """As on another machine: from elsewhere, with a cache of its own that holds nothing yet."""
    copied = tmp_path / "copied"
    shutil.copytree(jobs[-1].folder, copied)
    shutil.rmtree(copied / "runs" / jobs[-1].key)
    monkeypatch.chdir(tmp_path)
    found = run_job(copied, jobs[-1].key, cache=tmp_path / "cache")
    assert found.val_loss == ran[0][jobs[-1]].val_loss
    name = "trained.safetensors"
    assert (copied / "runs" / jobs[-1].key / name).read_bytes() == (
        jobs[-1].run / name
    ).read_bytes()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("linear", "METHOD/seed-N"),
        ("mlp/seed-0", "has no job"),
        ("linear/seed-2", "run that first"),
    ],
)
def test_a_job_that_cannot_be_run_is_refused(jobs: list[Job], tmp_path, key, said):
    shutil.copytree(jobs[-1].folder, tmp_path / "copied")
    shutil.rmtree(tmp_path / "copied" / "runs")
    with pytest.raises(UsageError, match=said):
        run_job(tmp_path / "copied", key, cache=tmp_path)
    with pytest.raises(UsageError, match=r"config\.yaml cannot be read"):
        run_job(tmp_path, "linear/seed-0")


def test_what_a_worker_is_told_does_not_grow_with_the_data(jobs: list[Job]):
    """Neither the message to it, nor what it decodes before the first batch."""
    assert len(ForkingPickler.dumps(jobs[-1])) < 1000
    stored = StoredData.read(jobs[-1].folder).train
    assert select(stored, Stage(), 0) is stored


@pytest.mark.parametrize("rows", [None, 12], ids=["much data", "few rows"])
def test_a_script_without_a_guard_is_told_so(small_config, scenes_folder, tmp_path, rows):
    train = scenes_folder / "train.jsonl"
    if rows:
        lines = train.read_text().splitlines(keepends=True)
        train = scenes_folder / "few.jsonl"
        train.write_text("".join(lines[:rows]))
    file = small_config(data={"train": str(train)}, methods=["linear"], budget="32samples")
    script = tmp_path / "script.py"
    script.write_text(f"import modalign\nmodalign.compare({str(file)!r}, out='out')\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("modalign.errors.ModalignError:")
    assert "if __name__ == '__main__':" in last
    assert not list(tmp_path.glob("out/runs/*/*/result.json"))


@pytest.mark.parametrize("name", ["result.json", "scores.npz"])
def test_a_damaged_file_is_named(tmp_path, name):
    job = Job(tmp_path, "linear", 0)
    job.run.mkdir(parents=True)
    (job.run / name).write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ModalignError, match=rf"{name} cannot be read"):
        job.result() if name == "result.json" else load_scores(job.run)
