"""Two processes against one on the same global batches: equal losses, weights and checkpoints."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from distributed_work import one
from safetensors.torch import load_file
from tiny_session import EVERY_STEP, Plan, assert_same

from modalign.errors import UsageError
from modalign.training import checkpoint
from modalign.training.parallel import Parallel
from modalign.training.settings import TrainSettings

HERE = Path(__file__).parent
TOLERANCE = 1e-5
# 22 samples in batches of 3: one process has a sample more, and the last batch is a single sample.
# Batches are sorted by number of images: some have an image in one process only.
SHARED: dict[str, Any] = {"batch_size": 3}
DATA: dict[str, Any] = {"budget": "32samples", "count": 22, "val": 4}
START = {"reference": "start"}
APART: dict[str, Any] = {
    "objective": {
        "npo": {"role": "a"},
        "cross_entropy": {"role": "b"},
        "relation": START | {"role": "b"},
        "proximal": 0.5,
    },
    "roles": {"a": "domain:a", "b": "domain:b"},
}
TOGETHER: dict[str, Any] = {
    "objective": {"info_nce": {"anchor": "a", "positive": "b", "temperature": 0.5}},
    "roles": {"a": "domain:a", "b": "domain:b"},
    "matched": True,
}
ROLES: dict[str, Any] = {"paired": True, "recipe": [APART]}
PAIRS: dict[str, Any] = {"paired": True, "recipe": [TOGETHER]}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"settings": {"accumulate": 2}},
    "ddp, lora": {"settings": {"llm": "lora", "packing": True, "pack_length": 96}},
    "fsdp, full": {"settings": {"parallel": "fsdp", "llm": "full"}},
    "fsdp, in-layer": {
        "settings": {"parallel": "fsdp", "gradient_checkpointing": True},
        "plan": {"method": "gated_cross_attention"},
    },
    "fsdp, stage one, trials": {
        "settings": {"parallel": "fsdp"},
        "plan": {"method": "qformer", "factor": None, "budget": "72samples", "trial_steps": 1},
    },
    "ddp, codes": {"settings": {"accumulate": 2}, "plan": {"method": "vq_codes"}},
    "fsdp, words": {"settings": {"parallel": "fsdp"}, "plan": {"method": "vocabulary_codes"}},
    "fsdp, encoder": {"settings": {"parallel": "fsdp", "encoder": "full"}},
    "ddp, roles": {"settings": {"accumulate": 2, "llm": "lora"}, "plan": ROLES},
    "ddp, pairs": {"settings": {"accumulate": 2, "batch_size": 6}, "plan": PAIRS},
}
CUT = 3  # steps before a run is cut off, to be resumed in another world


def _job(plan: Callable[..., Plan], folder: Path, case: dict[str, Any], **more: Any) -> dict:
    changes = {**DATA, **case.get("plan", {})}
    often = {"checkpoint_seconds": EVERY_STEP} if "cut" in more else {}
    settings = {**SHARED, **often, **case.get("settings", {})}
    return {"plan": asdict(plan(**changes)), "folder": str(folder), "settings": settings, **more}


class World:
    """What two processes and one process made of the same trainings."""

    def __init__(self, plan: Callable[..., Plan], root: Path) -> None:
        self.root = root
        self.alone: dict[str, dict[str, Any]] = {}
        jobs: dict[str, Any] = {}
        for name, case in CASES.items():
            self.alone[name] = one(_job(plan, root / "one" / name, case))
            jobs[name] = _job(plan, root / "two" / name, case)
            jobs[name]["settings"]["processes"] = 2
        for name in ("ddp", "fsdp, full"):
            job = _job(plan, root / "two" / f"from one: {name}", CASES[name], cut=CUT)
            assert "CutOff" in one(job)["error"]
            del job["cut"]
            jobs[f"from one: {name}"] = job
            job["settings"]["processes"] = 2
            job = _job(plan, root / "two" / f"to one: {name}", CASES[name], cut=CUT)
            job["settings"]["processes"] = 2
            jobs[f"to one: {name}"] = job
        for often in ("cut", "apart"):  # two machines that share no folder; cut off, then resumed
            job = _job(plan, root / "two" / "apart", CASES["fsdp, full"], cut=CUT, apart=True)
            job["settings"]["processes"] = 2
            jobs[often] = job
        del jobs["apart"]["cut"]
        jobs["seconds"] = _job(plan, root / "two/seconds", {"plan": {"budget": "0.6s"}})
        jobs["seconds"]["settings"]["processes"] = 2
        jobs["mismatch"] = _job(plan, root / "two/mismatch", {})
        self.ranks = self._launch(jobs)
        for name in ("ddp", "fsdp, full"):
            job = _job(plan, root / "two" / f"to one: {name}", CASES[name])
            self.alone[f"to one: {name}"] = one(job)

    def _launch(self, jobs: dict[str, Any]) -> list[dict[str, Any]]:
        spec = {"jobs": jobs, "runs": str(self.root / "two"), "out": str(self.root)}
        (self.root / "spec.json").write_text(json.dumps(spec))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [str(HERE / "tiny_session.py"), str(self.root / "spec.json")]
        done = subprocess.run(
            [*torchrun, "--nproc_per_node", "2", *script],
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        self.stderr = done.stderr
        return [json.loads((self.root / f"rank-{rank}.json").read_text()) for rank in range(2)]

    def two(self, name: str, rank: int = 0) -> dict[str, Any]:
        return self.ranks[rank]["told"][name]


@pytest.fixture(scope="module")
def world(plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(plan, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(world: World, name: str) -> None:
    one_process, two = world.alone[name], world.two(name)
    assert "error" not in one_process, one_process
    assert "error" not in two, two["error"]
    assert [stage for stage, _ in two["losses"]] == [stage for stage, _ in one_process["losses"]]
    # One process skips a batch of text alone, which moves nothing, and so knows no loss of it.
    losses = [
        (of_two, of_one)
        for (_, of_two), (_, of_one) in zip(two["losses"], one_process["losses"], strict=True)
        if not math.isnan(of_one)
    ]
    assert len(losses) >= len(two["losses"]) - 1
    assert [loss for loss, _ in losses] == pytest.approx(
        [loss for _, loss in losses], rel=TOLERANCE
    )
    assert two["val"] == pytest.approx(one_process["val"], rel=TOLERANCE)
    assert (two["samples"], two["factor"]) == (one_process["samples"], one_process["factor"])
    weights = [
        load_file(world.root / size / name / "trained.safetensors") for size in ("one", "two")
    ]
    for state in weights:  # a softmax does not see its keys' bias: what trains it is rounding error
        for key in [key for key in state if key.endswith(".k.bias")]:
            del state[key]
    assert_same(*weights, tolerance=TOLERANCE)


@pytest.mark.parametrize("name", ["ddp", "fsdp, full"])
def test_a_run_goes_on_in_a_world_of_another_size(world: World, name: str) -> None:
    whole = load_file(world.root / "one" / name / "trained.safetensors")
    steps = len(world.alone[name]["losses"])
    up, down = world.two(f"from one: {name}"), world.alone[f"to one: {name}"]
    for told, label in ((up, "from one"), (down, "to one")):
        assert "error" not in told, told["error"]
        assert len(told["losses"]) == steps - CUT
        resumed = load_file(world.root / "two" / f"{label}: {name}" / "trained.safetensors")
        assert_same(whole, resumed, tolerance=TOLERANCE)


def test_a_run_goes_on_where_machines_share_no_folder(world: World) -> None:
    whole = world.root / "one" / "fsdp, full" / "trained.safetensors"
    assert "CutOff" in world.two("cut")["error"]
    told = world.two("apart")
    assert "error" not in told, told["error"]
    assert len(told["losses"]) == len(world.alone["fsdp, full"]["losses"]) - CUT
    resumed = load_file(world.root / "two" / "apart" / "trained.safetensors")
    assert_same(load_file(whole), resumed, tolerance=TOLERANCE)
    assert not (world.root / "two" / "apart, on another machine").exists()


def test_only_the_first_process_writes(world: World) -> None:
    assert world.ranks[0]["written"]
    assert not world.ranks[1]["written"]
    assert all(not world.two(name, rank=1)["losses"] for name in CASES)


def test_a_seconds_budget_ends_at_the_same_step_everywhere(world: World) -> None:
    assert world.two("seconds", 0)["steps"] == world.two("seconds", 1)["steps"] > 0


def test_nothing_is_warned_about_unused_parameters(world: World) -> None:
    assert "find_unused_parameters" not in world.stderr


def test_launchers_that_connect_their_processes_are_named() -> None:
    with pytest.raises(UsageError) as error:
        Parallel(TrainSettings(device="cpu", processes=3))
    assert "torchrun --nproc_per_node 3 -m modalign train" in str(error.value)
    assert "on GPUs also 'accelerate launch --multi_gpu'" in str(error.value)


def test_a_world_of_another_size_is_refused(world: World) -> None:
    for rank in range(2):
        error = world.two("mismatch", rank)["error"]
        assert error.startswith("UsageError: 1 processes were requested, but 2 are connected")
    assert not checkpoint.checkpoints(world.root / "two/mismatch/train")
