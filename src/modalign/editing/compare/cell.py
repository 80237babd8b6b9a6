"""Run one cell: compute a method's patches for a draw of edits, apply them, ask every prompt."""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modalign.data.corpus import Corpus
from modalign.editing.benchmarks.drift import TOKENS, drift
from modalign.editing.benchmarks.evaluate import EditEvaluation, evaluate_edits
from modalign.editing.benchmarks.rows import EditRow
from modalign.editing.benchmarks.scores import Task, succeeded
from modalign.editing.compare.judging import judge_edit
from modalign.editing.compare.measuring import StageClock, peak_memory
from modalign.editing.compare.plan import ONE_AFTER_ANOTHER, Planned
from modalign.editing.compare.results import CellResult, Outcome
from modalign.editing.computation import Options
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking
from modalign.editing.methods import Method
from modalign.errors import ModalignError, first_line
from modalign.numbers.estimate import Estimate
from modalign.patches import Patch, applied, view
from modalign.patches.header import EditRecord, patch_hash
from modalign.progress import Progress

MEASURED = ("GE", "RS")  # metrics of evaluate_edits that are not means over edits


@dataclass(frozen=True)
class Workbench:
    """What all cells share.

    Attributes:
        model, tokenizer: opened once; every cell leaves the model bit for bit unchanged.
        asking: the form in which the model is edited and asked.
        edits: all those in the file.
        methods: by name, configured.
        layers: method -> the layers it writes.
        task: the benchmark whose scores are used.
        corpus: text for the key statistics; None for what the model writes.
        held_out: documents for the drift; None without.
        cache: folder of statistics and values.
        generate: also generate freely.
        seed: of draws, samples and bootstrap.
        hashes: of everything that every cell depends on.
        progress: told how far the cell is.
    """

    model: PreTrainedModel
    tokenizer: Any
    asking: Asking
    edits: Sequence[Edit]
    methods: Mapping[str, Method]
    layers: Mapping[str, list[int]]
    task: Task
    corpus: Corpus | None
    held_out: Corpus | None
    cache: Path
    generate: bool
    seed: int
    hashes: Mapping[str, str]
    progress: Progress | None = None

    def fingerprint(self, planned: Planned, share: int) -> str:
        """Hash everything that determines a cell's result; see :func:`run_cell`."""
        method = self.methods[planned.method]
        edits = [{**asdict(self.edits[i]), "source": ""} for i in planned.edits]
        others = {name: value for name, value in self.hashes.items() if name != "edits"}
        what = [others, method.name, method.config.model_dump(mode="json"), edits, planned.mode]
        return digest([*what, planned.block, self.task, self.generate, self.seed, share])


def digest(value: Any) -> str:
    """Hash a value by its JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def run_cell(bench: Workbench, planned: Planned, share: int) -> CellResult:
    """Run one cell; any failure becomes its result.

    Args:
        bench: shared by all cells.
        planned: which cell.
        share: how many cells share the held-out text.
    """
    cell = CellResult(
        fingerprint=bench.fingerprint(planned, share),
        method=planned.method,
        mode=planned.mode,
        size=planned.size,
        draw=planned.draw,
        steps=len(planned.steps),
    )
    try:
        _fill(cell, bench, planned, share)
    except (ModalignError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
        cell.failure = first_line(error)
    except Exception as error:
        # A defect in one method must not cost the hours spent on the others; it is reported, not hidden.
        cell.failure = f"unexpected {type(error).__name__}: {first_line(error)}"
        cell.traceback = traceback.format_exc()
    return cell


def _fill(cell: CellResult, bench: Workbench, planned: Planned, share: int) -> None:
    clock = StageClock(bench.progress)
    with peak_memory(bench.model.device) as peak:
        made = _compute(bench, planned, clock, cell.notes)
    began = time.perf_counter()
    cell.seconds = {name: spent for name, spent in clock.seconds.items() if spent > 0}
    cell.values_new = clock.values
    cell.peak_memory = peak.memory
    cell.patches = [patch_hash(patch) for patch in made.patches]
    cell.layers = relative_change(bench.model, made.patches)
    edited: Any = bench.model
    for patch in made.patches:
        edited = view(edited, patch)
    edits = [bench.edits[i] for i in planned.edits]
    found = evaluate_edits(
        edited,
        bench.asking,
        edits,
        bench.task,
        generate=bench.generate,
        seed=bench.seed,
        progress=bench.progress,
    )
    cell.outcomes = _outcomes(found, made, bench.task, planned.method)
    with_value = sum(outcome.value is not None for outcome in cell.outcomes)
    cell.values_found = max(0, with_value - cell.values_new)
    measured = {name: found.metrics[name] for name in MEASURED if name in found.metrics}
    cell.measured = _finite(measured | _drift(bench, edited, share), cell.notes)
    cell.evaluation_seconds = time.perf_counter() - began + made.scoring_seconds


@dataclass
class _Made:
    """Patches, lowest first, with the records of their edits and whether each edit held right after its step."""

    patches: list[Patch]
    records: list[EditRecord]
    at_step: list[bool | None]
    scoring_seconds: float = 0.0


def _compute(bench: Workbench, planned: Planned, clock: StageClock, notes: list[str]) -> _Made:
    made = _Made([], [], [])
    for number, step in enumerate(planned.steps):
        edits = [bench.edits[i] for i in step]
        options = Options(
            corpus=bench.corpus,
            below=tuple(made.patches),
            cache=bench.cache,
            resume=True,
            progress=clock,
            said=_noting(notes),
        )
        with clock.running():
            name = f"{planned.method}-{number + 1}"
            method = bench.methods[planned.method]
            patch = method.compute(bench.model, bench.tokenizer, edits, options=options, name=name)
        made.patches.append(patch)
        made.records += patch.header.editing.edits
        began = time.perf_counter()
        several = len(planned.steps) > 1
        made.at_step += _hold(bench, edits, made.patches) if several else [None] * len(edits)
        made.scoring_seconds += time.perf_counter() - began
    return made


def _noting(notes: list[str]) -> Callable[[str], None]:
    def said(message: str) -> None:
        if message not in notes and "values were found before" not in message:
            notes.append(message)

    return said


def _hold(bench: Workbench, edits: Sequence[Edit], patches: Sequence[Patch]) -> list[bool | None]:
    """Return whether the rewrites of one step succeed right after it."""
    bare = [replace(e, paraphrases=(), neighbours=(), generation_prompts=()) for e in edits]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(applied(bench.model, patch))
        found = evaluate_edits(
            bench.model, bench.asking, bare, bench.task, generate=False, resamples=1
        )
    return [all(succeeded(bench.task, p.after) for p in row.prompts) for row in found.rows]


def _outcomes(found: EditEvaluation, made: _Made, task: Task, method: str) -> list[Outcome]:
    outcomes = []
    for row, record, at_step in zip(found.rows, made.records, made.at_step, strict=True):
        status, reason = judge_edit(
            row, record, task, at_step=at_step, one_after_another=method in ONE_AFTER_ANOTHER
        )
        outcomes.append(
            Outcome(
                row=finite_row(row),
                value=_number(record.probability),
                written=_number(record.written),
                steps=record.steps,
                at_step=at_step,
                status=status,
                reason=reason,
                warnings=list(record.warnings),
            )
        )
    return outcomes


def relative_change(model: PreTrainedModel, patches: Sequence[Patch]) -> dict[str, float]:
    """Return |Delta| / |W| per parameter, Delta being the sum over all patches (Frobenius norms)."""
    found = {}
    for name in dict.fromkeys(name for patch in patches for name in patch.changes):
        parts = [patch.changes[name].delta() for patch in patches if name in patch.changes]
        total = torch.stack([part.double() for part in parts]).sum(0)
        size = float(model.get_parameter(name).detach().double().norm())
        found[name] = float(total.norm()) / size if size else math.inf
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _drift(bench: Workbench, edited: Any, share: int) -> dict[str, Estimate]:
    """Measure KL and perplexity on held-out text; cells that share the text read a part of it each."""
    if bench.held_out is None:
        return {}
    return drift(
        edited,
        bench.tokenizer,
        bench.held_out.documents,
        base=bench.model,
        tokens=max(1024, TOKENS // share),
        seed=bench.seed,
        progress=bench.progress,
    )


def finite_row(row: EditRow) -> EditRow:
    """Return a row with only finite probabilities, since JSON has no others."""
    row = row.model_copy(deep=True)
    for prompt in row.prompts:
        for answer in (prompt.after, prompt.before):
            if answer is not None:
                answer.target, answer.truth = _number(answer.target), _number(answer.truth)
    return row


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite(measured: dict[str, Estimate], notes: list[str]) -> dict[str, Estimate]:
    kept = {}
    for name, found in measured.items():
        if all(map(math.isfinite, (found.value, found.low, found.high))):
            kept[name] = found
        else:
            notes.append(f"{name} is not a number: the edited model's outputs overflow")
    return kept
