"""``modalign edit compare``: plan, run the missing cells, assemble, write the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from modalign.data.corpus import read_corpus
from modalign.editing.benchmarks.evaluate import evaluate_edits
from modalign.editing.benchmarks.rows import EditRow
from modalign.editing.benchmarks.scores import Task
from modalign.editing.compare.assemble import assemble
from modalign.editing.compare.cell import Workbench, digest, finite_row, run_cell
from modalign.editing.compare.plan import Plan, make_plan, without_edited_neighbours
from modalign.editing.compare.report import report_of, view
from modalign.editing.compare.request import CompareRequest
from modalign.editing.compare.results import CellResult, ComparisonSetting, EditComparison
from modalign.editing.computation import Options
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.store import weights_hash
from modalign.editing.methods.base import Method, versions
from modalign.editing.readers import read_edits, validate_against_tokenizer
from modalign.editing.run import dtype_named, tuned
from modalign.errors import ModalignError, UsageError
from modalign.files import write_atomically
from modalign.hashing import tokenizer_hash
from modalign.lengths import declared_length
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.models.quiet import quietly
from modalign.numbers.pairs import resamples_for
from modalign.progress import Progress
from modalign.runs import RunFolder, command_line, run_folder
from modalign.strict_json import loads
from modalign.version import __version__

Say = Callable[[str], None]


@quietly()
def compare_edits(
    request: CompareRequest, progress: Progress | None = None, said: Say = lambda message: None
) -> EditComparison:
    """Run a comparison, or the cells still missing from it, and write its report.

    Raises:
        UsageError: unknown names or settings; a folder that holds a run already, or cannot be written.
        DataError: edits or texts that cannot be used.
        ModalignError: no cell has a result; the report is written all the same.
    """
    methods = request.configured()
    with run_folder(
        request.out,
        request.configuration(),
        resume=request.resume,
        overwrite=request.overwrite,
        fixed=False,  # cells of other settings are recognised by their fingerprints
    ) as folder:
        return _compare(request, methods, folder, progress, said)


def _compare(
    request: CompareRequest,
    methods: Mapping[str, Method],
    folder: RunFolder,
    progress: Progress | None,
    said: Say,
) -> EditComparison:
    began, started = time.monotonic(), _now()
    for name in request.settings:
        if name and name not in methods:
            said(f"settings of {name} have no effect: it is not compared")
    bench, notes = _open(request, methods, progress, said)
    plan = make_plan(
        request.methods,
        request.sizes,
        request.modes,
        len(bench.edits),
        seed=request.seed,
        block=request.block,
        draws=request.draws,
    )
    for note in plan.notes:
        said(note)
    folder.begin()
    bench.cache.mkdir(exist_ok=True)
    before = _before(request.out, bench, plan)
    cells = _run(request.out / "cells", bench, plan, said)
    setting = ComparisonSetting(
        command=command_line(),
        started=started,
        finished=_now(),
        seconds=time.monotonic() - began,
        device=str(bench.model.device),
        dtype=str(bench.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        seed=request.seed,
        block=request.block,
        resamples=resamples_for(len(plan.methods)),
        text=str(request.text) if request.text else None,
        held_out=str(request.held_out) if request.held_out else None,
        generate=request.generate,
        hashes=dict(bench.hashes),
        versions=versions(),
    )
    comparison = assemble(
        request, plan, cells, before, bench, setting=setting, notes=[*notes, *plan.notes]
    )
    report_of(comparison).write(request.out)
    if all(cell.failure for cell in cells.values()):
        first = next(cell.failure for cell in cells.values())
        raise ModalignError(f"no cell has a result; the first one failed with: {first}")
    return comparison


def _open(
    request: CompareRequest,
    methods: Mapping[str, Method],
    progress: Progress | None,
    said: Say,
) -> tuple[Workbench, list[str]]:
    notes: list[str] = []

    def tell(message: str) -> None:
        notes.append(message)
        said(message)

    templates = {method.config.template for method in methods.values()}
    if len(templates) > 1:
        raise UsageError(
            "the methods of one comparison are asked in one form: set template for all"
        )
    edits = read_edits(request.edits, conflicting="first", limit=request.limit, warn=tell)
    pictured = [edit for edit in edits if edit.image is not None]
    if pictured:
        raise UsageError(f"{pictured[0].source}: edits of pictures are not compared yet")
    edits, gone = without_edited_neighbours(edits)
    if gone:
        tell(f"{gone} neighbours left out: another edit of the file changes their answer")
    corpus = read_corpus(request.text) if request.text else None
    held_out = read_corpus(request.held_out) if request.held_out else None
    if held_out is None:
        tell("no drift was measured: name a text with --held-out")
    elif corpus is not None and corpus.sha256 == held_out.sha256:
        tell(
            "the held-out text is also that of the key statistics: drift on it looks smaller than elsewhere"
        )
    model, reader = open_model(request.model, dtype_named(request.dtype), request.device)
    tokenizer = tokenizer_of(reader)
    validate_against_tokenizer(edits, tokenizer, declared_length(model.config))
    task: Task = request.task or ("zsre" if edits[0].protocol == "zsre" else "counterfact")
    spec = ModelSpec.detect(model)
    if request.basis == "auto":
        options = Options(corpus=corpus, cache=request.out / "cache", progress=progress, said=tell)
        probed = edits[: max(request.sizes)]
        methods = {
            name: tuned(
                model,
                tokenizer,
                method,
                probed,
                method.config.model_dump(exclude_unset=True),
                options,
            )
            for name, method in methods.items()
        }
    bench = Workbench(
        model=model,
        tokenizer=tokenizer,
        asking=Asking(tokenizer, templates.pop()),
        edits=edits,
        methods=methods,
        # Refuse a layer that the model lacks now, not after hours of work.
        layers={name: list(m.config.layers_of(spec.depth)) for name, m in methods.items()},
        task=task,
        corpus=corpus,
        held_out=held_out,
        cache=request.out / "cache",
        generate=request.generate,
        seed=request.seed,
        hashes={
            "weights": weights_hash(spec),
            "tokenizer": tokenizer_hash(tokenizer),
            "edits": digest([asdict(edit) for edit in edits]),
            "text": corpus.sha256 if corpus else "none",
            "held-out text": held_out.sha256 if held_out else "none",
            "code": __version__,
        },
        progress=progress,
    )
    return bench, notes


def _run(folder: Path, bench: Workbench, plan: Plan, said: Say) -> dict[str, CellResult]:
    folder.mkdir(exist_ok=True)
    cells: dict[str, CellResult] = {}
    found = 0
    for number, planned in enumerate(plan.cells):
        share = len(plan.draws[planned.size])
        file = folder / f"{planned.key}.json"
        cell = _kept(file, bench.fingerprint(planned, share))
        if bench.progress:
            what = f"{planned.method}, {view.edits(planned.size)}, {planned.mode}"
            bench.progress(f"cells ({what})", number, len(plan.cells))
        if cell is None:
            cell = run_cell(bench, planned, share)
            write_atomically(file, cell.model_dump_json())
            if cell.failure:
                said(f"{planned.key} failed: {cell.failure}")
        else:
            found += 1
        cells[planned.key] = cell
    if bench.progress:
        bench.progress("cells", len(plan.cells), len(plan.cells))
    if found:
        said(f"{found} of {len(cells)} cells were there already")
    return cells


def _kept(file: Path, fingerprint: str) -> CellResult | None:
    """Return a finished cell with the same settings; failed ones are tried again."""
    try:
        cell = CellResult.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return cell if cell.fingerprint == fingerprint and cell.failure is None else None


def _before(out: Path, bench: Workbench, plan: Plan) -> dict[int, EditRow]:
    """Return what the unedited model says to every prompt of every edit used, by the edit's position."""
    used = plan.used
    fingerprint = digest([dict(bench.hashes), used, bench.task, bench.generate, bench.seed])
    file = out / "before.json"
    try:
        held = loads(file.read_text(encoding="utf-8"), nan=True)
        if held["fingerprint"] == fingerprint:
            rows = [EditRow.model_validate(row) for row in held["rows"]]
            return dict(zip(used, rows, strict=True))
    except (FileNotFoundError, ValueError, KeyError):
        pass
    bare = [replace(bench.edits[i], generation_prompts=()) for i in used]
    found = evaluate_edits(
        bench.model,
        bench.asking,
        bare,
        bench.task,
        generate=bench.generate,
        seed=bench.seed,
        resamples=1,
        progress=bench.progress,
    )
    rows = [finite_row(row) for row in found.rows]
    held = {"fingerprint": fingerprint, "rows": [row.model_dump() for row in rows]}
    write_atomically(file, json.dumps(held))
    return dict(zip(used, rows, strict=True))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
