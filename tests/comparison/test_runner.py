"""Jobs in processes of their own: whatever one dies of, the others go on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from compared import Compared
from modalign.comparison.job import Job, JobResult, load_scores
from modalign.comparison.runner import JobProgress, Silent, run_jobs
from modalign.errors import ModalignError


class Recorder(Silent):
    def __init__(self) -> None:
        self.ended: dict[str, JobResult] = {}
        self.fractions: list[float] = []

    def advanced(self, progress: JobProgress) -> None:
        self.fractions.append(progress.fraction)

    def finished(self, job: Job, result: JobResult) -> None:
        self.ended[job.key] = result


@pytest.fixture(scope="module")
def jobs(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    out = tmp_path_factory.mktemp("runner")
    prepared = compared.prepared(out)
    base = replace(
        prepared.job(prepared.methods[0], 0, 1.0),
        budget="32samples",
        train=prepared.splits.train[:64],
        val=prepared.splits.val[:8],
        evaluation=prepared.splits.evaluation[:8],
    )
    rates = base.settings.learning_rates.model_copy(update={"connector": 1e38, "llm": 1e38})
    absurd = base.settings.model_copy(update={"learning_rates": rates})

    def broken(seed: int, name: str) -> Job:
        encoder = {"image": f"breaking_parts:{name}"}
        parts = base.parts.model_copy(update={"encoder": encoder})
        return replace(base, seed=seed, parts=parts, folder=out / str(seed))

    return [
        broken(1, "Killed"),
        broken(2, "Refused"),
        broken(3, "Defective"),
        replace(base, seed=4, settings=absurd, folder=out / "4", budget="200samples"),
        replace(base, seed=5, folder=out / "5"),
    ]


@pytest.fixture(scope="module")
def ran(jobs: list[Job]) -> tuple[dict[str, JobResult], Recorder]:
    watcher = Recorder()
    return run_jobs(jobs, 2, watcher), watcher


def test_each_failure_says_why(ran, jobs: list[Job]):
    failures = [ran[0][job.key].failure for job in jobs]
    killed, refused, defective, absurd, fine = failures
    assert "SIGKILL (out of memory, most likely)" in killed
    assert "this encoder cannot be used; choose another" in refused
    assert "ZeroDivisionError: a defect" in defective
    assert "Traceback" in (jobs[2].folder / "error.txt").read_text()
    assert "at step" in absurd
    known = {sample.record.id for sample in jobs[3].train}
    assert any(name in absurd for name in known)
    assert fine is None


def test_the_others_go_on_and_everybody_is_told(ran, jobs: list[Job]):
    results, watcher = ran
    assert watcher.ended == results
    assert len(load_scores(jobs[-1].folder)["eval"]) == 8
    assert results[jobs[-1].key].samples >= 24


def test_failed_jobs_leave_no_result_and_finished_ones_are_kept(ran, jobs: list[Job]):
    assert [job.result() is None for job in jobs] == [True, True, True, True, False]
    before = (jobs[-1].folder / "result.json").stat().st_mtime_ns
    again = run_jobs(jobs[-1:], 1)
    assert again[jobs[-1].key] == ran[0][jobs[-1].key]
    assert (jobs[-1].folder / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("rows", [None, 12], ids=["a job larger than a pipe", "a small job"])
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
def test_a_damaged_file_is_named(jobs: list[Job], tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 half")
    job = replace(jobs[0], folder=tmp_path)
    with pytest.raises(ModalignError, match=rf"{name} cannot be read"):
        job.result() if name == "result.json" else load_scores(tmp_path)
