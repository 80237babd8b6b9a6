"""Trainings that differ in their records alone: one model, one budget, the same seeds and held-out records.

A training is kept as soon as it is judged (``trainings/ROW/seed-K.json``), so that an interrupted run continues.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save

from modalign.data.supervision import Sample
from modalign.evaluation.scoring import score
from modalign.files import write_atomically
from modalign.memory import return_freed_memory
from modalign.mixtures.config import LoopConfig, Metric
from modalign.numbers.bootstrap import Floats
from modalign.progress import Progress
from modalign.strict_json import read_object
from modalign.training.budget import Budget
from modalign.training.start import start_of
from modalign.training.tuning import Tuning, spent

UNTRAINED = "untrained"


class Scored(BaseModel):
    """What a model said of a set of records: per record, its loss, tokens, and whether its answer is right."""

    model_config = ConfigDict(extra="forbid")

    loss: list[float]
    tokens: list[int]
    correct: list[bool]

    def values(self, metric: Metric) -> Floats:
        """(n,) figures whose mean is the metric, the larger the better: exact answers, or minus the loss.

        The loss per token is a ratio of sums; its records contribute r + (l - r t) / mean(t), see
        :func:`modalign.numbers.trainings.estimate_ratios`.
        """
        if metric == "accuracy":
            return np.array(self.correct, dtype=np.float64)
        losses, tokens = np.array(self.loss), np.array(self.tokens, dtype=np.float64)
        ratio = losses.sum() / tokens.sum()
        found: Floats = -(ratio + (losses - ratio * tokens) / tokens.mean())
        return found


class Trained(BaseModel):
    """One training.

    Attributes:
        row, seed: which.
        records: different ones that it could draw from.
        samples: it saw.
        seconds: of training.
        scored: held-out set -> what it said.
    """

    model_config = ConfigDict(extra="forbid")

    row: str
    seed: int
    records: int
    samples: int
    seconds: float
    scored: dict[str, Scored]


@dataclass
class Trials:
    """Trains and judges.

    Attributes:
        config: model, budget, settings.
        out: folder of the run.
        everyone: all training samples, for encoders that depend on them.
        held: held-out set -> its samples.
        budget: of a training.
        total: trainings expected, for the progress.
        progress: called as it goes.
    """

    config: LoopConfig
    out: Path
    everyone: Sequence[Sample]
    held: Mapping[str, Sequence[Sample]]
    budget: Budget
    total: int = 0
    progress: Progress | None = None
    done: int = 0
    _at: int | None = field(default=None, repr=False)

    def tuning(self, seed: int) -> Tuning:
        """Return the model of a seed, as it was left; only one is in memory."""
        if self._at != seed:
            self._tuning: Tuning | None = None
            return_freed_memory()
            c = self.config
            media = list(dict.fromkeys(m for sample in self.everyone for m in sample.media))
            opened = start_of(c.model, c.parts, c.method, media, seed)
            self._tuning = Tuning(opened, c.stages, c.training, self.everyone, seed=seed)
            self._start = self._tuning.trained_state()
            self._at = seed
        assert self._tuning is not None
        return self._tuning

    def check(self) -> list[str]:
        """Refuse what would end a training later; returns notes for the report.

        Raises:
            UsageError, DataError: what it is.
        """
        return self.tuning(0).check()

    def trained(
        self, row: str, samples: Sequence[Sample], seed: int, *, keep: bool = False
    ) -> Trained:
        """Train from the start on these samples, or read what an earlier run left.

        Args:
            row: names it in files.
            samples: to draw from; none: the start itself is judged.
            seed: of new connectors, LoRA and data order.
            keep: keep the trained weights, for :meth:`restore`.
        """
        file = self._file(row, seed)
        self.done += 1
        if file.exists() and (not keep or self._weights(row, seed).exists()):
            return Trained.model_validate(read_object(file))
        tuning = self.restart(seed)
        samples_seen, seconds = 0, 0.0
        if samples:
            tuning.train_samples, tuning.seed = samples, seed
            tuning.report = lambda stage, step: self._tell(row, step.fraction)
            work = file.with_suffix(".work")
            ledger = spent(tuning.run(self.budget, work))
            samples_seen, seconds = ledger.samples, ledger.seconds
        file.parent.mkdir(parents=True, exist_ok=True)
        if keep:
            write_atomically(self._weights(row, seed), save(tuning.trained_state()))
        found = Trained(
            row=row,
            seed=seed,
            records=len(samples),
            samples=samples_seen,
            seconds=seconds,
            scored=self.judged(seed),
        )
        write_atomically(file, found.model_dump_json())
        shutil.rmtree(file.with_suffix(".work"), ignore_errors=True)
        self._tell(row, 1.0)
        return found

    def judged(self, seed: int) -> dict[str, Scored]:
        """Judge the model of a seed as it is."""
        tuning, found = self.tuning(seed), {}
        tuning.model.eval()
        for name, samples in self.held.items():
            told = score(tuning.model, samples, tuning.collator, tuning.device)
            found[name] = Scored(
                loss=told.loss.tolist(), tokens=told.tokens.tolist(), correct=told.correct.tolist()
            )
        return found

    def restart(self, seed: int) -> Tuning:
        """Return the model of a seed as every training finds it."""
        tuning = self.tuning(seed)
        tuning.load_trained(self._start)
        tuning.model.eval()
        return tuning

    def restore(self, row: str, seed: int) -> Tuning:
        """Return the model with the weights that a training kept."""
        tuning = self.tuning(seed)
        tuning.load_trained(load_file(self._weights(row, seed)))
        tuning.model.eval()
        return tuning

    def _file(self, row: str, seed: int) -> Path:
        named = re.sub(r"[^\w.=-]", "_", row)
        if named != row:  # two rows never share a folder
            named += f"-{hashlib.sha256(row.encode()).hexdigest()[:6]}"
        return self.out / "trainings" / named / f"seed-{seed}.json"

    def _weights(self, row: str, seed: int) -> Path:
        return self._file(row, seed).with_suffix(".safetensors")

    def _tell(self, row: str, fraction: float) -> None:
        if self.progress:
            total = max(self.total, self.done)
            self.progress(row[:40], int((self.done - 1 + fraction) * 100), total * 100)
