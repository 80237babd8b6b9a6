"""Verify bit-identical results by rerunning one training of a comparison."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from modalign.cache import cache_directory
from modalign.comparison.job import RUNS, load_task, read_result, train_and_measure
from modalign.comparison.results import Comparison, SeedRun
from modalign.comparison.setting import installed
from modalign.devices import processor
from modalign.errors import UsageError
from modalign.progress import Progress
from modalign.training.methods import method_key


class Verified(BaseModel):
    """The outcome of rerunning a training.

    Attributes:
        job: METHOD/seed-N.
        same: whether weights and answers are identical.
        differs: which results differ.
        elsewhere: differences between the machines.
    """

    job: str
    same: bool
    differs: list[str]
    elsewhere: list[str]

    @property
    def words(self) -> str:
        """Describe the outcome in a sentence."""
        if self.same:
            return f"{self.job} gave the same bits: the same weights and the same answers."
        return f"{self.job} did not give the same bits: other {' and '.join(self.differs)}."


def verify(report: Path, progress: Progress | None = None) -> Verified:
    """Rerun the shortest training of a comparison in a separate folder and compare.

    Args:
        report: ``report.json``, in the comparison's folder (``config.yaml`` and ``data/`` beside it).
        progress: called with the progress.

    Raises:
        UsageError: the report or its folder is missing.
    """
    found = _read(report)
    folder = report.parent
    method, run = _shortest(found, folder)
    key = f"{method_key(method)}/seed-{run.seed}"
    task = load_task(folder, key, cache_directory())
    task.fill()
    torch.set_num_threads(found.setting.threads)
    if progress:
        progress(f"training {key} again", 0, 1)
    with tempfile.TemporaryDirectory() as own:
        again = train_and_measure(replace(task, run=Path(own)))
    before = {"weights": run.weights, "answers": run.answers}
    differs = [name for name, value in before.items() if getattr(again, name) != value]
    return Verified(job=key, same=not differs, differs=differs, elsewhere=_elsewhere(found))


def _read(report: Path) -> Comparison:
    try:
        return Comparison.model_validate_json(report.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{report} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise UsageError(f"{report} is not the report.json of a comparison ({what})") from error


def _shortest(found: Comparison, folder: Path) -> tuple[str, SeedRun]:
    """Return the shortest training, preferably one without trials if their result is available."""
    known = []
    for method in found.methods:
        first = min((run.seed for run in method.seeds), default=0)
        rate = read_result(folder / RUNS / method_key(method.name) / f"seed-{first}")
        known += [
            (run.seed == first, run.seconds, method.name, run)
            for run in method.seeds
            if run.weights and (run.seed == first or rate is not None)
        ]
    if not known:
        raise UsageError(
            "the report says of no training what came out of it: run the comparison again"
        )
    _, _, name, run = min(known, key=lambda each: each[:3])
    return name, run


def _elsewhere(found: Comparison) -> list[str]:
    """List differences from the machine that wrote the report."""
    here = {"processor": processor(), **installed()}
    there = {"processor": found.setting.processor, **found.setting.libraries}
    return [
        f"{name}: {there[name]} then, {value} now"
        for name, value in here.items()
        if name in there and there[name] != value
    ]
