"""Train one method from data files to a saved and checked model folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modalign.cache import cache_directory
from modalign.evaluation.guessing import BlindGuess
from modalign.memory import return_freed_memory
from modalign.models.export import save_model, verify_saved
from modalign.models.quiet import quietly
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.training import checkpoint
from modalign.training.budget import Budget
from modalign.training.doctor.checks_saving import check_room_for_model, probes_of
from modalign.training.doctor.preflight import preflight_session
from modalign.training.methods import resolve_method
from modalign.training.parallel import Parallel
from modalign.training.recipes import check_data
from modalign.training.session import Session, SessionResult
from modalign.training.settings import Stage, TrainSettings
from modalign.training.sources import DataFiles, Parts
from modalign.training.splits import Splits, load_splits, that_fit
from modalign.training.tool_models import save_with_tools
from modalign.training.tracking import open_tracker
from modalign.training.trainable import PartCount
from modalign.training.trainer import StepProgress


@dataclass
class TrainResult:
    """The result of ``modalign train``."""

    method: str
    folder: Path
    parts: list[PartCount]
    factor: float
    steps: int
    samples: int
    seconds: float
    flops: float
    val_loss: float | None
    saved: str = ""
    dtype: str = ""
    difference: float | None = None
    notes: list[str] = field(default_factory=list)
    main: bool = True

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {**asdict(self), "folder": str(self.folder)}


@quietly()
def train_method(
    name: str,
    parts: Parts,
    files: DataFiles,
    settings: TrainSettings,
    budget: str,
    out: Path,
    *,
    recipe: Sequence[Stage] = (Stage(),),
    seed: int = 0,
    factor: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    described: Callable[[list[PartCount], list[str]], None] | None = None,
) -> TrainResult:
    """Train one method, save it to ``out/model``, reload it and compare.

    Raises:
        UsageError: an invalid name or budget, or a folder that contains a run or cannot be written.
        DataError: invalid data.
    """
    return_freed_memory()
    method, allowance = resolve_method(name, recipe), Budget.parse(budget)
    parallel = Parallel(settings)
    configuration = {
        "method": name,
        "parts": parts.model_dump(mode="json"),
        "data": files.model_dump(mode="json"),
        "budget": budget,
        "training": settings.model_dump(mode="json", exclude={"processes"}),
        "stages": [stage.model_dump(mode="json") for stage in recipe],
        "seed": seed,
        "factor": factor,
    }
    claim = run_folder(out, configuration, resume=resume, overwrite=overwrite)
    with claim if parallel.main else nullcontext() as folder:  # the main process decides for all
        tell = progress if parallel.main else None
        splits = load_splits(files, parts.load_llm().tokenizer, tell, parts.modalities)
        splits = that_fit(splits, parts, files, tell)
        seen = check_data(method.name, method.stages, splits.train, splits.text)
        session = Session(
            method,
            parts,
            settings,
            splits.train,
            splits.val,
            cache_directory(),
            seed,
            text=splits.text,
            parallel=parallel,
            report=_reporting(progress) if parallel.main else None,
            track=open_tracker(settings, out) if parallel.main else None,
        )
        notes = [*splits.notes, *seen, *preflight_session(session, processes=parallel.world)]
        table = [*session.parts_table(), *session.references.table()]
        check_room_for_model(session.model, out)
        if described and parallel.main:
            described(table, notes)
        if folder is not None:
            folder.begin()
        parallel.barrier()
        found = session.run(allowance, out / "run", factor)
        result = _result(name, out, session, found, table, notes)
        if parallel.main:
            session.merge_lora()
            result.dtype = str(session.saved_dtype).removeprefix("torch.")
            _save(session, splits, result)
            checkpoint.write_json(out / "result.json", result.summary())
        parallel.barrier()
        return result


def _reporting(progress: Progress | None) -> Callable[[str, StepProgress], None]:
    def report(stage: str, step: StepProgress) -> None:
        if progress:
            progress(f"{stage} (loss {step.loss:.3f})"[:40], int(step.fraction * 1000), 1000)

    return report


def _result(
    name: str,
    out: Path,
    session: Session,
    found: SessionResult,
    table: list[PartCount],
    notes: list[str],
) -> TrainResult:
    losses = [p["val_loss"] for p in found.curve if p.get("val_loss") is not None]
    return TrainResult(
        method=name,
        folder=out,
        parts=table,
        factor=found.factor,
        steps=found.steps,
        samples=found.ledger.samples,
        seconds=found.ledger.seconds,
        flops=found.ledger.flops,
        val_loss=losses[-1] if losses else None,
        notes=notes,
        main=session.parallel.main,
    )


def _save(session: Session, splits: Splits, result: TrainResult) -> None:
    """Write the model folder, reload it and compare."""
    folder = result.folder / "model"
    guess = BlindGuess.of(sample.record for sample in splits.train)
    if session.method.tools:
        save_with_tools(session, folder)
        guess.save(folder)
        result.saved, result.difference = session.method.facts.export_target, 0.0
        return
    result.saved = save_model(
        session.model, session.processor, folder, dtype=session.saved_dtype
    ).kind
    guess.save(folder)
    probes = probes_of(session, splits.val)
    result.difference = verify_saved(folder, session.model, session.processor, probes)
