"""What a comparison will take: measured on a few steps, multiplied by the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from modalign.cli.console import TRAINING, LiveTable, left_words
from modalign.comparison.config import load_config
from modalign.comparison.dry_run import (
    ASKED,
    STEPS,
    MethodForecast,
    _fewer_questions,
    _forecast,
    _whole,
    dry_run,
)
from modalign.comparison.job import Job, JobResult
from modalign.comparison.prepared import Prepared
from modalign.comparison.runner import JobProgress
from modalign.progress import SCORING
from modalign.training.splits import Splits


def config(small_config, **changes):
    return load_config(small_config(**changes))[0]


def test_seconds_grow_with_the_budget_and_the_fixed_part_does_not(small_config, tmp_path: Path):
    (tmp_path / "weights").write_bytes(bytes(1000))
    result = JobResult(method="mlp", seed=0, samples=64, seconds=2.0, flops=1e9, peak_memory=7)
    for budget, trains in (("6400samples", 200.0), ("90s", 90.0), ("3e9flops", 6.0)):
        found = _forecast(config(small_config, budget=budget), result, 12.0, tmp_path)
        assert (found.fixed, found.disk, found.memory) == (10.0, 1000, 7)
        assert found.seconds == pytest.approx(10.0 + trains)


def test_a_few_questions_stand_for_all(small_config, tmp_path: Path):
    rows = [object() for _ in range(100)]
    splits = Splits(rows, rows[:30], rows[:60], "", 0, [])
    prepared = Prepared(config(small_config), [], splits, {}, tmp_path, tmp_path)
    more = _fewer_questions(prepared)
    assert (len(splits.val), len(splits.evaluation)) == (ASKED, ASKED)
    assert more == (2 * 30 + 4 * 60) / (2 * ASKED + 4 * ASKED)
    result = JobResult(method="mlp", seed=0, samples=64, seconds=2.0, judging=3.0, flops=1e9)
    assert _forecast(config(small_config), result, 12.0, tmp_path, more).fixed == 7 + 3 * more
    splits = Splits(rows, rows[:5], [], "", 0, [])
    assert _fewer_questions(Prepared(config(small_config), [], splits, {}, tmp_path, tmp_path)) == 1


def test_the_whole_counts_trainings_and_workers(small_config):
    methods = [
        MethodForecast(name=f"m{n}", fixed=1, seconds=10 * n, memory=n, disk=n) for n in (1, 2, 3)
    ]
    found = _whole(config(small_config, seeds=3, jobs=2), methods, {}, shared=100)
    assert found.trainings == 3 * 3
    assert found.seconds == 3 * (10 + 20 + 30) / 2
    assert (found.memory, found.disk) == (3 + 2, 100 + 9 * 3)
    raced = config(small_config, seeds="auto", total="8trainings", jobs=1)
    found = _whole(raced, methods, {}, shared=0)
    assert (found.trainings, found.seconds) == (8, 2 * (10 + 20 + 30) + 2 * 30)


def test_a_dry_run_measures_and_leaves_nothing(small_config, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    told: list[tuple[str, int, int]] = []
    settings = config(small_config, methods=["linear"], seeds=1)
    found = dry_run(settings, cache=tmp_path / "cache", progress=lambda *step: told.append(step))
    (method,) = found.methods
    assert method.seconds > method.fixed > 0
    assert method.memory > 10**8
    assert found.disk > method.disk > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("modalign")]
    assert ("measuring methods", 1, 1) in told
    assert STEPS * settings.training.batch_size > 0


@pytest.mark.parametrize(
    ("seconds", "share", "said"),
    [
        (0, 0.0, "0%"),
        (60, 0.25, "25%, about 3 min left"),
        (9, 1.0, "100%"),
        (30, 0.5, "50%, about 30.0 s left"),
    ],
)
def test_time_left_is_at_the_pace_so_far(seconds: float, share: float, said: str):
    assert left_words(seconds, share) == said


def test_loading_and_scoring_untrained_models_do_not_count_as_slow_training(monkeypatch, capsys):
    """Found with a pretrained model: three minutes before its first step made it "14 h left"."""
    now = [0.0]
    monkeypatch.setattr("modalign.cli.console.time.monotonic", lambda: now[0])
    table = LiveTable(expected=4)
    jobs = [Job(Path("run"), "linear", seed, 0) for seed in range(4)]
    table.started(jobs[0])
    now[0] = 180.0
    table.advanced(JobProgress(jobs[0], "train", 0.0, 2.0, 8))
    now[0] = 190.0
    table.advanced(JobProgress(jobs[0], "train", 0.04, 2.0, 16))
    assert table.ahead() == left_words(10, 0.01 * TRAINING)  # the rest of a job is scoring
    now[0] = 500.0
    table.advanced(JobProgress(jobs[0], SCORING, 1.0, 2.0, 200))
    assert "trained, now scored; in all 22%\n" in capsys.readouterr().err
    now[0] = 600.0
    table.finished(
        jobs[0], JobResult(method="linear", seed=0, samples=64, seconds=300.0, flops=1e9)
    )
    assert table.ahead() == left_words(600, 0.25)  # with what else a job takes
