"""The configuration of a comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from modalign.configuration import Fields
from modalign.progress import Progress
from modalign.training.experiment import Experiment, load_experiment
from modalign.training.methods import Method, resolve_methods
from modalign.training.parallel import device_of

# Twelve methods of both families, matched in width; they take eight minutes.
DEMO: Fields = {
    "methods": [
        "linear",
        "mlp",
        "avgpool_mlp",
        "pixel_shuffle_linear",
        "pixel_shuffle_mlp",
        "ldpv2",
        "c_abstractor",
        "clipcap_lowrank",
        "resampler",
        "qformer",
        "gated_cross_attention",
        "llama_adapter",
    ],
}


SHIFT = 1000  # more than the trainings of one method in a comparison


class CompareConfig(Experiment):
    """The configuration of a comparison, with the fields of an experiment.

    Attributes:
        methods: names, families or ``all``.
        seeds: trainings per method, each with its own seed; ``auto`` adds them where they affect the choice
            (:mod:`modalign.comparison.racing`).
        confidence: of the recommendation, at which no more are added.
        total: that all trainings together may spend before no more are added: ``40trainings``, or a budget. None:
            a quarter more trainings than two per method, and four more at least.
        seed: shifts everything that is random: the trainings' seeds, and the split where validation data is
            set aside. Comparisons under two shifts share nothing but the data.
        plan_for: a larger budget, for which the learning curves are asked which method is best
            (:mod:`modalign.comparison.planning`).
        metric: what answers are judged by (:mod:`modalign.comparison.metrics`): ``exact``, or a task of ``eval``.
        recipes: named recipes to combine with every connector, or ``all``; those that name one
            (``mlp+captions_first``) stay as they are.
        jobs: methods to train at the same time, each in a process with its share of the cores.
        examples: evaluation questions whose answers the report shows.
    """

    methods: list[str] = Field(default_factory=lambda: ["all"])
    seeds: PositiveInt | Literal["auto"] = "auto"
    confidence: float = Field(default=0.9, gt=0, lt=1)
    total: str | None = None
    seed: NonNegativeInt = 0
    plan_for: str | None = None
    metric: str = "exact"
    recipes: list[str] = Field(default_factory=list)
    jobs: NonNegativeInt = 0
    examples: NonNegativeInt = 8

    @field_validator("seeds", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        number = int(value) if str(value).isdecimal() else value
        if number != "auto" and not (isinstance(number, int) and number > 0):
            raise ValueError("give a number of trainings, 1 or more, or auto")
        return number

    def resolved(self) -> list[Method]:
        """Return the named methods.

        Raises:
            UsageError: an unknown name.
        """
        return resolve_methods(self.methods, self.stages, self.recipes, list(self.parts.tools))

    @property
    def first_seed(self) -> int:
        """Seed of a method's first training; the others follow."""
        return self.seed * SHIFT

    @property
    def workers(self) -> int:
        """Number of processes: one per core on a CPU, one on an accelerator."""
        if self.jobs:
            return self.jobs
        if device_of(self.training).type != "cpu":
            return 1
        return max(1, min(_cores(), 8))

    @property
    def threads(self) -> int:
        """Threads per process."""
        return max(1, _cores() // self.workers)


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_config(
    path: str | Path | None, changes: Fields | None = None, progress: Progress | None = None
) -> tuple[CompareConfig, dict[str, str]]:
    """Resolve a configuration (see :func:`load_experiment`); without a file, the starter."""
    return load_experiment(CompareConfig, path, changes, progress, also=DEMO)
