"""``modalign distill``: train a student by schedules of stages that read a teacher, judge them, write a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from modalign.compression.distillation.bench import Bench, judge_references, prepare
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.judging import Judged, judge
from modalign.compression.distillation.report import assemble, report_of
from modalign.compression.distillation.results import Distillation
from modalign.compression.distillation.schedules import Variant
from modalign.errors import UsageError, choose
from modalign.files import write_atomically
from modalign.models.quiet import quietly
from modalign.progress import Progress
from modalign.runs import read_result, run_folder
from modalign.training.budget import Budget
from modalign.training.methods import method_key
from modalign.training.trainer import StepProgress
from modalign.training.tuning import Tuning, spent

Say = Callable[[str], None]
RESULT = "result.json"


class Trained(BaseModel):
    """One training of one variant: what it cost, and how its model is judged."""

    samples: int
    seconds: float
    flops: float
    stages: list[dict[str, Any]]
    judged: Judged


@quietly()
def distill(
    config: DistillConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    said: Say = lambda message: None,
) -> Distillation:
    """Distil a teacher into a student, save it to ``out/model``, and report beside it.

    Args:
        config: what to distil, and how.
        out: folder of the run.
        resume: go on with an interrupted run; finished trainings are kept.
        overwrite: delete an earlier run.
        progress: called with the progress of every training.
        said: called with warnings and notes as they are known.

    Raises:
        UsageError: models that do not fit each other, unknown schedules or terms, a folder that holds a run.
        DataError: data that cannot be used.
    """
    began = time.monotonic()
    variants = [Variant.of(text) for text in (config.schedule, *config.against)]
    if len({variant.name for variant in variants}) < len(variants):
        raise UsageError("--against names a schedule twice, or the main one")
    if variants[0].same_time:
        raise UsageError(
            f"--schedule {variants[0].name}: only those of --against take its wall time"
        )
    known = sorted({term for variant in variants for term in variant.terms})
    for term in config.terms:
        if term not in known:
            raise UsageError(f"terms.{term}: no schedule has this term; {choose(term, known)}")
    Budget.parse(config.budget)
    values = config.model_dump(mode="json")
    with run_folder(out, values, resume=resume, overwrite=overwrite) as folder:
        bench = prepare(config, out, progress)
        for variant in variants:
            _rehearse(bench, variant)
        folder.begin()
        judge_references(bench)
        for message in (*bench.warnings, *bench.notes):
            said(message)
        trained: dict[str, list[Trained]] = {}
        for variant in variants:
            first = trained.get(variants[0].name)
            trained[variant.name] = [
                _training(bench, variant, seed, first[number] if first else None)
                for number, seed in enumerate(range(config.seed, config.seed + config.seeds))
            ]
        found = assemble(bench, variants, trained, time.monotonic() - began)
        report_of(found).write(out)
    return found


def _place(bench: Bench, variant: Variant, seed: int) -> Path:
    return bench.out / "runs" / method_key(variant.name) / f"seed-{seed}"


def _tuning(bench: Bench, variant: Variant, seed: int) -> Tuning:
    config = bench.config
    return Tuning(
        bench.plan.make(seed),
        variant.stages_for(config.teacher, config.terms, connectors=bench.media),
        config.training,
        bench.train,
        seed=seed,
        report=_reporting(bench.progress, f"{variant.name}, seed {seed}"),
    )


def _rehearse(bench: Bench, variant: Variant) -> None:
    """Try a batch of every stage before anything is trained, unless the variant is done."""
    config = bench.config
    seeds = range(config.seed, config.seed + config.seeds)
    if not all((_place(bench, variant, seed) / RESULT).exists() for seed in seeds):
        found = _tuning(bench, variant, config.seed).check(bench.out)
        bench.notes += [note for note in found if note not in bench.notes]


def _training(bench: Bench, variant: Variant, seed: int, main: Trained | None) -> Trained:
    """Train one variant under one seed, unless it is done; the first one of all is saved."""
    place = _place(bench, variant, seed)
    if (found := read_result(place / RESULT, Trained)) is not None:
        return found
    config = bench.config
    tuning = _tuning(bench, variant, seed)
    budget = Budget.parse(config.budget)
    if variant.same_time:
        assert main is not None
        budget = Budget("seconds", main.seconds)
    cost = spent(tuning.run(budget, place))
    tuning.merge_lora()
    tuning.opened.model.eval()
    if main is None and seed == config.seed:
        tuning.save(bench.out / "model")
    found = Trained(
        samples=cost.samples,
        seconds=cost.seconds,
        flops=cost.flops,
        stages=[
            stage.model_dump(mode="json", exclude_defaults=True) for stage in tuning.method.stages
        ],
        judged=judge(tuning.opened, bench.evaluation, bench.device),
    )
    write_atomically(place / RESULT, found.model_dump_json())
    return found


def _reporting(progress: Progress | None, what: str) -> Callable[[str, StepProgress], None] | None:
    if progress is None:
        return None

    def report(stage: str, step: StepProgress) -> None:
        progress(f"{what}, {stage} (loss {step.loss:.3f})"[:60], int(step.fraction * 1000), 1000)

    return report
