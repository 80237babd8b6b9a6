"""Train one method from data files to a saved and checked model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modalign.differences import differences
from modalign.errors import UsageError
from modalign.models.export import conversation_of, save_model, verify_saved
from modalign.progress import Progress
from modalign.starter.build import cache_directory
from modalign.training import checkpoint
from modalign.training.budget import Budget
from modalign.training.doctor import preflight_session
from modalign.training.memory import return_freed_memory
from modalign.training.methods import resolve_method
from modalign.training.parallel import Parallel
from modalign.training.recipes import check_data
from modalign.training.session import Session
from modalign.training.settings import Stage, TrainSettings
from modalign.training.sources import DataFiles, Parts
from modalign.training.splits import Splits, load_splits, that_fit
from modalign.training.tool_models import save_with_tools
from modalign.training.tracking import open_tracker
from modalign.training.trainable import PartCount
from modalign.training.trainer import Progress as StepProgress

RECORD = "run.json"  # of a run's folder: what it was started with


@dataclass
class TrainResult:
    """What ``modalign train`` reports."""

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
    difference: float | None = None
    notes: list[str] = field(default_factory=list)
    main: bool = True

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "folder": str(self.folder)}


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
    progress: Progress | None = None,
    described: Callable[[list[PartCount], list[str]], None] | None = None,
) -> TrainResult:
    """Train one method, save it to ``out/model``, load it again and compare.

    Raises:
        UsageError: a wrong name or budget, or a folder of another run.
        DataError: broken data.
    """
    return_freed_memory()
    method, allowance = resolve_method(name, recipe), Budget.parse(budget)
    parallel = Parallel(settings)
    record = {
        "method": name,
        "stages": [stage.model_dump() for stage in recipe],
        "parts": parts.model_dump(),
        "data": files.model_dump(),
        "settings": settings.model_dump(exclude={"processes"}),
        "budget": budget,
        "seed": seed,
        "factor": factor,
    }
    if parallel.main:  # it decides for all
        _check_free(out, record, resume)
    tell = progress if parallel.main else None
    splits = load_splits(files, parts.load_llm().tokenizer, tell, parts.modalities)
    splits = that_fit(splits, parts, files, tell)

    def report(stage: str, step: StepProgress) -> None:
        if progress:
            progress(f"{stage} (loss {step.loss:.3f})"[:40], int(step.fraction * 1000), 1000)

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
        report=report if parallel.main else None,
        track=open_tracker(settings, out) if parallel.main else None,
    )
    table = session.parts_table()
    notes = [*splits.notes, *seen, *preflight_session(session, processes=parallel.world)]
    if described and parallel.main:
        described(table, notes)
    if parallel.main:
        _claim(out, record)
    parallel.barrier()
    found = session.run(allowance, out / "run", factor)
    losses = [p["val_loss"] for p in found.curve if p.get("val_loss") is not None]
    result = TrainResult(
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
        main=parallel.main,
    )
    if parallel.main:
        session.merge_lora()
        _save(session, splits, result)
        checkpoint.write_json(out / "result.json", result.summary())
    parallel.barrier()
    return result


def _save(session: Session, splits: Splits, result: TrainResult) -> None:
    """Write the model folder, load it again and compare."""
    folder = result.folder / "model"
    if session.method.tools:
        save_with_tools(session, folder)
        result.saved, result.difference = session.method.facts.export_target, 0.0
        return
    result.saved = save_model(session.model, session.processor, folder).kind
    samples = [sample for sample in (*splits.val, *splits.train) if sample.media][:4]
    probes = [conversation_of(sample.record, session.processor) for sample in samples]
    result.difference = verify_saved(folder, session.model, session.processor, probes)


def _check_free(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    record = out / RECORD
    if not record.exists():
        return
    if not resume:
        raise UsageError(f"{out} holds a run already; give --resume to go on, or another --out")
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{record} cannot be read ({error}); choose another --out") from error
    changed = differences(before, json.loads(json.dumps(settings)))
    if changed:
        raise UsageError(
            f"{out} was started with other settings: {'; '.join(changed)}. Resume it with the same "
            "options, or choose another --out"
        )


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's own, once everything given has proved usable."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / RECORD, settings)
