"""What a process of a distributed test does: a list of trainings, one after the other."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import save_file
from tiny_session import WRITES, Plan

from modalign.training.trainer import StepProgress, Trainer


class CutOffError(Exception):
    """Stands for the end of a process, in all processes at once."""


def stop_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let every training end like a killed one when it comes to that step."""
    whole = Trainer._step

    def cut(self: Trainer, fraction: float) -> tuple[float, float, int, float]:
        if self.step == step:
            raise CutOffError
        return whole(self, fraction)

    patch.setattr(Trainer, "_step", cut)


def one(job: dict[str, Any]) -> dict[str, Any]:
    """Run one training; what it came to, as JSON."""
    told: dict[str, Any] = {"losses": []}

    def report(stage: str, step: StepProgress) -> None:
        told["losses"].append([stage, step.loss])

    folder = Path(job["folder"])
    if job.get("apart") and dist.is_initialized() and dist.get_rank():
        folder = folder.with_name(f"{folder.name}, on another machine")
    with pytest.MonkeyPatch.context() as patch:
        if "cut" in job:
            stop_before(job["cut"], patch)
        try:
            session = Plan(**job["plan"]).session(report, **job["settings"])
            result = Plan(**job["plan"]).run(folder, session)
            told |= {"steps": result.steps, "samples": result.ledger.samples}
            told |= {"val": [point["val_loss"] for point in result.curve], "factor": result.factor}
            state = session.trained_state()
            if session.parallel.main:
                save_file(state, folder / "trained.safetensors")
        except Exception as error:
            told["error"] = f"{type(error).__name__}: {error}"
            if not isinstance(error, CutOffError):
                traceback.print_exc()
    return told


def work(spec: dict[str, Any]) -> None:
    """Run every training of the list; each process tells its own story in a file of its own."""
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and spec["runs"] in str(arguments[0]):
            reads = event == "open" and not set("wax+") & set(str(arguments[1] or ""))
            if not reads or (isinstance(arguments[2], int) and arguments[2] & 3):
                written.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    told = {name: one(job) for name, job in spec["jobs"].items()}
    rank = dist.get_rank() if dist.is_initialized() else 0
    out = {"told": told, "written": written}
    tiny_out = Path(spec["out"]) / f"rank-{rank}.json"
    tiny_out.write_text(json.dumps(out))
    if dist.is_initialized():
        dist.destroy_process_group()
