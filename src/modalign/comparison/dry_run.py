"""Forecast the cost of a comparison from a few steps of every method.

Every method is trained for a few steps and asked a few questions, in separate processes as in the comparison.
Seconds per sample are multiplied by the budget, seconds per question by the questions; the rest is fixed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random

from pydantic import BaseModel

from modalign.cache import cache_directory
from modalign.comparison.config import CompareConfig
from modalign.comparison.job import Job, JobResult
from modalign.comparison.prepared import Prepared, prepare
from modalign.comparison.processes import Processes
from modalign.comparison.racing import BEGINNING, Total
from modalign.comparison.runner import JobProgress, run_jobs
from modalign.errors import ModalignError
from modalign.files import bytes_in
from modalign.models.quiet import quietly
from modalign.progress import Progress
from modalign.runs import RECORD, run_folder
from modalign.training.budget import Budget
from modalign.training.trainable import PartCount
from modalign.training.trials import TRIAL_FACTORS, TRIAL_SEEDS, trial_share

STEPS = 8  # per method, at most
SHARE = 1 / 20  # of the budget, at most, but two steps
ASKED = 24  # questions of the validation and of the evaluation data
# How often a method's first training asks them: untrained and trained; also with blank and others' media.
VAL_TIMES, EVAL_TIMES = 2, 4


class MethodForecast(BaseModel):
    """One training of one method.

    Attributes:
        fixed: seconds independent of the budget: startup, all questions.
        seconds: in total.
        memory: peak, in bytes.
        disk: bytes written.
    """

    name: str
    fixed: float
    seconds: float
    memory: int
    disk: int


class Forecast(BaseModel):
    """The forecast of a comparison.

    Attributes:
        trainings: of all methods together, at most.
        seconds: in total, with ``workers`` processes.
        memory: bytes of all workers together.
        disk: bytes of the folder, without the cached encoder features.
        failures: method -> why it cannot be trained.
    """

    methods: list[MethodForecast]
    trainings: int
    workers: int
    seconds: float
    memory: int
    disk: int
    failures: dict[str, str] = {}


class _Clock:
    """Records start and end of every job, and forwards to another watcher."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.began: dict[Job, float] = {}
        self.took: dict[Job, float] = {}
        self.progress, self.total = progress, total
        if progress:
            progress("measuring methods", 0, total)

    def started(self, job: Job) -> None:
        self.began[job] = time.monotonic()

    def described(self, job: Job, parts: list[PartCount]) -> None:
        """Nothing is measured here."""

    def advanced(self, progress: JobProgress) -> None:
        """Nothing is measured here."""

    def decided(self, said: str) -> None:
        """Nothing is measured here."""

    def finished(self, job: Job, result: JobResult) -> None:
        self.took[job] = time.monotonic() - self.began.get(job, time.monotonic())
        if self.progress:
            self.progress("measuring methods", len(self.took), self.total)


@quietly()
def dry_run(
    config: CompareConfig, *, cache: Path | None = None, progress: Progress | None = None
) -> Forecast:
    """Measure a few steps of every method and forecast the comparison.

    Args:
        config: of the comparison.
        cache: of encoder features, which are computed if missing.
        progress: called with the progress.

    Raises:
        UsageError, DataError: as :func:`~modalign.comparison.compare.compare`.
        ModalignError: no method can be trained.
    """
    cache = cache or cache_directory()
    once = config.training.model_copy(update={"val_points": 1})
    small = config.model_copy(
        update={"budget": str(_few_steps(config)), "examples": 0, "training": once}
    )
    with tempfile.TemporaryDirectory(prefix="modalign-dry-run-") as name:
        out = Path(name) / "run"
        with run_folder(out, small.model_dump(mode="json")) as folder:
            prepared = prepare(small, out, cache, progress)
            folder.begin()
            records = len(prepared.splits.val)
            more = _fewer_questions(prepared)
            validated = _validated(config, records) / _validated(small, len(prepared.splits.val))
            prepared.store()
            clock = _Clock(progress, len(prepared.methods))
            jobs = [
                Job(out, method.name, config.first_seed, config.first_seed)
                for method in prepared.methods
            ]
            pool = Processes(config.workers, config.threads, cache, filled=True)
            found = run_jobs(jobs, pool, clock)
            working = [job for job in jobs if found[job].failure is None]
            own = [
                _forecast(config, found[job], clock.took[job], job.run, more, validated)
                for job in working
            ]
            shared = bytes_in(out) - bytes_in(out / "runs") - (out / RECORD).stat().st_size
    failures = {job.method: found[job].failure or "" for job in jobs if job not in working}
    if not own:
        raise ModalignError("; ".join(f"{name}: {why}" for name, why in failures.items()))
    return _whole(config, own, failures, shared)


def _fewer_questions(prepared: Prepared) -> float:
    """Leave a few questions to be asked, and return how many times as many the comparison asks."""
    splits = prepared.splits

    def asked() -> int:
        return VAL_TIMES * len(splits.val) + EVAL_TIMES * len(splits.evaluation)

    before, draw = asked(), Random(0)
    splits.val = draw.sample(list(splits.val), min(ASKED, len(splits.val)))
    splits.evaluation = draw.sample(list(splits.evaluation), min(ASKED, len(splits.evaluation)))
    return before / max(asked(), 1)


def _few_steps(config: CompareConfig) -> Budget:
    """Return a small part of the budget, too small for learning-rate trials."""
    budget, batch = Budget.parse(config.budget), config.training.batch_size
    samples = budget.amount * SHARE if budget.kind == "samples" else STEPS * batch
    return Budget("samples", max(min(samples, STEPS * batch), 2 * batch))


def _validated(config: CompareConfig, records: int) -> float:
    """Return how many records a first training validates: at its points, and after each learning-rate trial."""
    settings = config.training
    trials = TRIAL_SEEDS * len(TRIAL_FACTORS)
    tried = trial_share(Budget.parse(config.budget), settings.batch_size) > 0
    times = settings.val_points + 1 + (trials if tried else 0)
    return max(times * min(records, settings.val_samples), 1)


def _forecast(
    config: CompareConfig,
    result: JobResult,
    wall: float,
    folder: Path,
    more: float = 1.0,
    validated: float = 1.0,
) -> MethodForecast:
    """Forecast one training of a method; ``more`` and ``validated`` times as much is asked and validated."""
    budget = Budget.parse(config.budget)
    spent = float(getattr(result, budget.kind)) or 1.0
    trains = result.seconds * budget.amount / spent if result.samples else 0.0
    start = max(wall - result.seconds - result.judging - result.validating, 0.0)
    fixed = start + more * result.judging + validated * result.validating
    return MethodForecast(
        name=result.method,
        fixed=fixed,
        seconds=fixed + trains,
        memory=result.peak_memory or 0,
        disk=bytes_in(folder),
    )


def _whole(
    config: CompareConfig, methods: list[MethodForecast], failures: dict[str, str], shared: int
) -> Forecast:
    """Forecast all trainings; those added by a race are assumed to be of the costliest method."""
    each = config.seeds if isinstance(config.seeds, int) else BEGINNING
    longest = max(method.seconds for method in methods)
    trainings = expected_trainings(config, len(methods))
    added = trainings - each * len(methods)
    seconds = each * sum(method.seconds for method in methods) + added * longest
    disk = max(method.disk for method in methods)
    return Forecast(
        methods=methods,
        trainings=trainings,
        workers=config.workers,
        seconds=max(seconds / config.workers, longest),
        memory=sum(sorted((m.memory for m in methods), reverse=True)[: config.workers]),
        disk=shared + trainings * disk,
        failures=failures,
    )


def expected_trainings(config: CompareConfig, methods: int) -> int:
    """Return the number of trainings for so many methods; with a race, the maximum."""
    if isinstance(config.seeds, int):
        return config.seeds * methods
    total = Total.of(config.total, methods)
    return int((total if total.kind == "trainings" else Total.of(None, methods)).amount)
