"""Checkpoints: whole or absent, whatever kills the process; damage is named; no pickle anywhere."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_session import (
    EVERY_STEP,
    Plan,
    assert_same,
    die_at_write,
    trained,
    trained_through_kills,
)

from kills import in_child
from modalign.errors import ModalignError, UsageError
from modalign.training import checkpoint
from modalign.training.budget import Ledger

SOURCE = Path(checkpoint.__file__).parents[1]
Make = Callable[..., Plan]

CASES = {
    "samples": {"budget": "96samples"},
    "flops, accumulation": {"budget": "0.8gflops", "settings": {"accumulate": 2}},
    "full language model, in-layer": {
        "method": "gated_cross_attention",
        "settings": {"llm": "full"},
    },
    "lora, packing": {"settings": {"llm": "lora", "packing": True, "pack_length": 96}},
    "trials": {"factor": None, "budget": "240samples", "val": 4},
    "stage one": {"method": "qformer", "budget": "128samples"},
    "stage one, codes": {"method": "vq_codes", "budget": "128samples"},
    "stage one, draws": {"method": "variational", "budget": "128samples"},
    "encoder": {"settings": {"encoder": "full"}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_again_and_again_equals_an_uninterrupted_one(
    plan: Make, tmp_path: Path, case: str
) -> None:
    chosen = {"settings": {}, **CASES[case]}
    chosen["settings"] = {**chosen["settings"], "checkpoint_seconds": EVERY_STEP}
    whole, _ = trained(plan(**chosen), tmp_path / "whole")
    longest = 120 if case == "trials" else 50  # writes before a kill
    survived, kills = trained_through_kills(plan(**chosen), tmp_path / "killed", len(case), longest)
    assert kills > 2
    assert_same(whole, survived)


def test_a_kill_from_outside_at_any_time(plan: Make, tmp_path: Path) -> None:
    made = plan(budget="1200samples", settings={"checkpoint_seconds": 0.02})
    whole, _ = trained(made, tmp_path / "whole")
    codes = [
        in_child(lambda: made.run(tmp_path / "killed") and None, kill_after=seconds)
        for seconds in (0.9, 1.2)
    ]
    # A fast machine may finish before the kill, a busy one may not have begun; the result is the same.
    assert set(codes) <= {-signal.SIGKILL, 0}
    assert_same(whole, trained(made, tmp_path / "killed")[0])


def test_seconds_spent_before_a_kill_count(plan: Make, tmp_path: Path) -> None:
    made = plan(budget="2s", settings={"checkpoint_seconds": EVERY_STEP})
    folder = tmp_path / "run"
    folder.mkdir()

    def work() -> None:
        session = made.session()
        die_at_write(folder, 60)
        made.run(folder, session)

    assert in_child(work) == -signal.SIGKILL
    before = checkpoint.load_checkpoint(checkpoint.checkpoints(folder / "train")[-1])[2]["ledger"]
    assert 0 < before["seconds"] < 1.5
    result = made.run(folder)
    assert result.ledger.samples > before["samples"]
    longest = 0.5  # one step on a busy machine
    assert 1.5 <= result.ledger.seconds < 1.5 + longest


def test_two_checkpoints_are_kept_and_half_written_ones_removed(plan: Make, tmp_path: Path) -> None:
    made = plan(settings={"checkpoint_seconds": EVERY_STEP})
    folder = tmp_path / "run"
    folder.mkdir()

    def work() -> None:
        session = made.session()
        die_at_write(folder, 31)
        made.run(folder, session)

    assert in_child(work) == -signal.SIGKILL
    (folder / "train/.step-00000099").mkdir(exist_ok=True)
    made.run(folder)
    assert [path.name for path in sorted((folder / "train").iterdir())] == [
        "step-00000007",
        "step-00000008",
    ]


@pytest.mark.parametrize("file", ["trainable.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_checkpoint_is_named(plan: Make, tmp_path: Path, file: str, damage: str) -> None:
    made = plan(budget="24samples")
    made.run(tmp_path)
    newest = checkpoint.checkpoints(tmp_path / "train")[-1]
    broken = newest / file
    content = broken.read_bytes()
    broken.unlink()
    if damage == "cut":
        broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModalignError, match=f"{re.escape(str(newest))} cannot be read.*delete it"):
        made.run(tmp_path)


def test_another_plan_does_not_go_on_in_the_same_folder(plan: Make, tmp_path: Path) -> None:
    plan(budget="24samples").run(tmp_path)
    for changed, word in [
        (plan(budget="48samples"), "budget"),
        (plan(budget="24samples", factor=3.0), "learning_rates"),
        (plan(budget="24samples", settings={"batch_size": 4}), "batch_size"),
        (plan(budget="24samples", count=41), "samples"),
    ]:
        with pytest.raises(UsageError, match=f"another {word}"):
            changed.run(tmp_path)


def test_a_finished_run_is_not_trained_again(plan: Make, tmp_path: Path) -> None:
    made = plan(factor=None, budget="160samples", val=4)
    first, result = trained(made, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    steps: list[object] = []
    session = made.session(report=lambda *step: steps.append(step))
    assert made.run(tmp_path, session) == result
    assert not steps
    assert_same(first, session.trained_state())
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(ModalignError, match="bias"):
        checkpoint.load_trainable(model, {"weight": torch.zeros(3, 2)})
    with pytest.raises(ModalignError, match="shape"):
        checkpoint.load_trainable(model, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)})


def test_no_pickle_is_written_or_read(plan: Make, tmp_path: Path) -> None:
    plan(method="qformer", factor=None, budget="160samples", val=4).run(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert path.suffix in {".safetensors", ".json", ".jsonl", ".csv"}, path
        start = path.read_bytes()[:9]
        assert not start.startswith(b"PK"), path  # torch.save
        # A pickle starts with this byte; a safetensors file may, in the length of its header.
        assert not start.startswith(b"\x80") or start.endswith(b"{"), path
    words = re.compile(
        r"torch\.(load|save)\(|import pickle\b|pickle\.(load|dump)|allow_pickle=True"
    )
    sources = list(SOURCE.rglob("*.py"))
    assert len(sources) > 40
    found = [
        (path.relative_to(SOURCE).as_posix(), match.group())
        for path in sources
        for match in words.finditer(path.read_text())
    ]
    # vLLM takes prompt embeddings in that form only; it goes over the wire and is never read here.
    # What a job of this program tells on Ray: Ray carries every object so, within one cluster.
    assert {name for name, _ in found} == {
        "serving/gateway.py",
        "comparison/on_ray.py",
        "comparison/ray_worker.py",
    }
    assert [word for name, word in found if name == "serving/gateway.py"] == ["torch.save("]


def test_slow_steps_are_not_saved_one_by_one(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is slower than the interval; the report of the last one is the end of the bar."""
    monkeypatch.setattr("modalign.training.trainer.Ledger.spend", slowly(40.0))
    told: list[float] = []
    made = plan(budget="144samples", val=0, settings={"checkpoint_seconds": 30.0})
    session = made.session(report=lambda _, step: told.append(step.fraction))
    saved: list[int] = []
    write = checkpoint.save_checkpoint

    def counted(folder: Path, step: int, *rest: Any) -> None:
        saved.append(step)
        write(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save_checkpoint", counted)
    steps = made.run(tmp_path, session).steps
    assert saved == [8, 16, steps]  # ten times the interval lies between eight steps of 40 s
    assert len(told) == steps
    assert told == sorted(told)
    assert (told[0] > 0, told[-1]) == (True, 1)


def slowly(seconds: float) -> Callable[..., None]:
    """Spend as the ledger does, but so many seconds a step."""
    spend = Ledger.spend

    def spent(self: Ledger, samples: int, _: float, flops: float) -> None:
        spend(self, samples, seconds, flops)

    return spent
