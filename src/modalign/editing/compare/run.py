"""``modalign edit compare``: plan, run what is missing, assemble, write the report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from modalign.editing.benchmarks.evaluate import evaluate_edits
from modalign.editing.benchmarks.rows import EditRow
from modalign.editing.benchmarks.scores import TASKS, Task
from modalign.editing.compare.assemble import assemble
from modalign.editing.compare.cell import Workbench, finite_row, run_cell
from modalign.editing.compare.plan import (
    SIZES,
    Plan,
    Planned,
    make_plan,
    without_edited_neighbours,
)
from modalign.editing.compare.report import write_report
from modalign.editing.compare.results import MODES, Cell, EditComparison, Mode
from modalign.editing.edits import Edit
from modalign.editing.engine.corpus import Corpus, read_corpus
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.store import weights_hash
from modalign.editing.methods import METHODS, Method
from modalign.editing.readers import read_edits, validate_against_tokenizer
from modalign.editing.run import configured, dtype_named
from modalign.errors import ModalignError, UsageError
from modalign.files import write_atomically
from modalign.hashing import tokenizer_hash
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.progress import Progress
from modalign.runs import RunFolder, command_line, run_folder
from modalign.version import __version__

Say = Callable[[str], None]


@dataclass(frozen=True)
class CompareRequest:
    """What the user asked for.

    Attributes:
        model: folder or hub name.
        edits: file.
        out: folder of cells, cache and report.
        methods, sizes, modes: what to compare.
        task: whose scores; None for the file's own kind.
        text: for the key statistics; None for what the model itself writes.
        held_out: text for the drift; None for none.
        settings: method -> field -> value; under ``""`` fields for every method that has them.
        block: edits per sequential step; None for a tenth.
        draws: at most so many draws of each size.
        table: the size whose edits are listed one by one; None for the largest up to 100.
        generate: also generate freely.
        limit: only the first edits of the file.
        seed: of draws, samples and bootstrap.
        resume: take up what the folder holds.
        overwrite: delete the comparison that the folder holds, and begin anew.
        device, dtype: of the model.
    """

    model: str
    edits: Path
    out: Path
    methods: tuple[str, ...] = tuple(METHODS)
    sizes: tuple[int, ...] = SIZES
    modes: tuple[Mode, ...] = MODES
    task: Task | None = None
    text: Path | None = None
    held_out: Path | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    block: int | None = None
    draws: int | None = None
    table: int | None = None
    generate: bool = True
    limit: int | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str | None = None
    dtype: str | None = None

    def configuration(self) -> dict[str, Any]:
        """As plain values, without where it is written and how it is begun."""
        values = {k: v for k, v in asdict(self).items() if k not in ("out", "resume", "overwrite")}
        return json.loads(json.dumps(values, default=str))


def compare_edits(
    request: CompareRequest, progress: Progress | None = None, said: Say = lambda message: None
) -> EditComparison:
    """Run a comparison, or what is missing of it, and write its report.

    Raises:
        UsageError: unknown names or settings; a folder that holds a run already, or cannot be written.
        DataError: edits or texts that cannot be used.
        ModalignError: not one cell has a result; the report is written all the same.
    """
    methods = {name: configured(name, found) for name, found in _settings(request).items()}
    _check(request)
    with run_folder(
        request.out,
        request.configuration(),
        resume=request.resume,
        overwrite=request.overwrite,
        fixed=False,  # cells of other settings are told by their fingerprints
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
            said(f"settings of {name} are of no use here: it is not compared")
    bench, notes = _open(request, progress, said)
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
    layers = _layers(bench, methods)
    basis = _basis(request, bench)
    folder.begin()
    bench.cache.mkdir(exist_ok=True)
    before = _before(request.out, bench, plan, basis)
    cells = _run(request, bench, plan, methods, basis, progress, said)
    comparison = assemble(
        plan,
        cells,
        before,
        bench,
        methods=methods,
        layers=layers,
        notes=[*notes, *plan.notes],
        table=request.table,
    )
    comparison.model, comparison.edits = request.model, str(request.edits)
    _describe_setting(comparison, request, bench, basis, started, time.monotonic() - began)
    write_report(comparison, request.out)
    if all(cell.failure for cell in cells.values()):
        first = next(cell.failure for cell in cells.values())
        raise ModalignError(f"no cell has a result; the first one failed with: {first}")
    return comparison


def _settings(request: CompareRequest) -> dict[str, dict[str, Any]]:
    """Each method's own settings: those for all that it has, and over them those for it alone."""
    for name in request.settings:
        if name and name not in METHODS:
            raise UsageError(f"--set {name}: there is no such method ({', '.join(METHODS)})")
    shared = request.settings.get("", {})
    known = {
        name: set(METHODS[name].config_class.model_fields) if name in METHODS else set()
        for name in request.methods
    }
    for one in shared:
        if not any(one in fields for fields in known.values()):
            raise UsageError(f"--set {one}: none of {', '.join(request.methods)} has such a field")
    return {
        name: {key: value for key, value in shared.items() if key in known[name]}
        | dict(request.settings.get(name, {}))
        for name in request.methods
    }


def _check(request: CompareRequest) -> None:
    if request.task is not None and request.task not in TASKS:
        raise UsageError(f"no task {request.task!r}: choose from {', '.join(TASKS)}")
    wrong = [mode for mode in request.modes if mode not in MODES]
    if wrong:
        raise UsageError(f"--modes {wrong[0]}: choose from {', '.join(MODES)}")


def _open(
    request: CompareRequest, progress: Progress | None, said: Say
) -> tuple[Workbench, list[str]]:
    notes: list[str] = []

    def tell(message: str) -> None:
        notes.append(message)
        said(message)

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
        tell("the held-out text is that of the key statistics: its drift is flattered")
    model, reader = open_model(request.model, dtype_named(request.dtype), request.device)
    tokenizer = tokenizer_of(reader)
    validate_against_tokenizer(edits, tokenizer)
    task: Task = request.task or ("zsre" if edits[0].protocol == "zsre" else "counterfact")
    bench = Workbench(
        model=model,
        tokenizer=tokenizer,
        edits=edits,
        task=task,
        corpus=corpus,
        held_out=held_out,
        cache=request.out / "cache",
        generate=request.generate,
        seed=request.seed,
        progress=progress,
    )
    return bench, notes


def _layers(bench: Workbench, methods: Mapping[str, Method]) -> dict[str, list[int]]:
    """The layers each method writes; a layer that the model lacks is refused before the hours."""
    depth = ModelSpec.detect(bench.model).depth
    return {name: list(method.config.layers_of(depth)) for name, method in methods.items()}


def _basis(request: CompareRequest, bench: Workbench) -> dict[str, str]:
    """What every cell depends on: hashes, and the version of the code."""

    def text(corpus: Corpus | None) -> str:
        return corpus.sha256 if corpus else "none"

    return {
        "weights": weights_hash(ModelSpec.detect(bench.model)),
        "tokenizer": tokenizer_hash(bench.tokenizer),
        "edits": _digest([asdict(replaced) for replaced in bench.edits]),
        "text": text(bench.corpus),
        "held-out text": text(bench.held_out),
        "code": __version__,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _fingerprint(
    planned: Planned, method: Method, basis: Mapping[str, str], bench: Workbench, share: int
) -> str:
    edits = [{**asdict(bench.edits[i]), "source": ""} for i in planned.edits]
    others = {name: value for name, value in basis.items() if name != "edits"}
    what = [others, method.name, method.config.model_dump(mode="json"), edits, planned.mode]
    return _digest([*what, planned.block, bench.task, bench.generate, bench.seed, share])


def _run(
    request: CompareRequest,
    bench: Workbench,
    plan: Plan,
    methods: Mapping[str, Method],
    basis: Mapping[str, str],
    progress: Progress | None,
    said: Say,
) -> dict[str, Cell]:
    folder = request.out / "cells"
    folder.mkdir(exist_ok=True)
    cells: dict[str, Cell] = {}
    found = 0
    for number, planned in enumerate(plan.cells):
        share = len(plan.draws[planned.size])
        method = methods[planned.method]
        fingerprint = _fingerprint(planned, method, basis, bench, share)
        cell = _kept(folder / f"{planned.key}.json", fingerprint)
        if progress:
            what = f"{planned.method}, {_edits(planned.size)}, {planned.mode}"
            progress(f"cells ({what})", number, len(plan.cells))
        if cell is None:
            cell = run_cell(bench, planned, method, fingerprint, share)
            write_atomically(folder / f"{planned.key}.json", cell.model_dump_json())
            if cell.failure:
                said(f"{planned.key} failed: {cell.failure}")
        else:
            found += 1
        cells[planned.key] = cell
    if progress:
        progress("cells", len(plan.cells), len(plan.cells))
    if found:
        said(f"{found} of {len(cells)} cells were there already")
    return cells


def _edits(count: int) -> str:
    return "1 edit" if count == 1 else f"{count} edits"


def _kept(file: Path, fingerprint: str) -> Cell | None:
    """A finished cell of the same settings; failed ones are tried again."""
    try:
        cell = Cell.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return cell if cell.fingerprint == fingerprint and cell.failure is None else None


def _before(
    out: Path, bench: Workbench, plan: Plan, basis: Mapping[str, str]
) -> dict[int, EditRow]:
    """What the unedited model says to every prompt of every edit used, by the edit's position."""
    used = plan.used
    fingerprint = _digest([dict(basis), used, bench.task, bench.generate, bench.seed])
    file = out / "before.json"
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["fingerprint"] == fingerprint:
            rows = [EditRow.model_validate(row) for row in held["rows"]]
            return dict(zip(used, rows, strict=True))
    except (FileNotFoundError, ValueError, KeyError):
        pass
    bare = [_without_texts(bench.edits[i]) for i in used]
    found = evaluate_edits(
        bench.model,
        bench.tokenizer,
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


def _without_texts(edit: Edit) -> Edit:
    from dataclasses import replace

    return replace(edit, generation_prompts=())


def _describe_setting(
    comparison: EditComparison,
    request: CompareRequest,
    bench: Workbench,
    basis: Mapping[str, str],
    started: str,
    seconds: float,
) -> None:
    setting = comparison.setting
    setting.command = command_line()
    setting.started, setting.finished, setting.seconds = started, _now(), seconds
    setting.block = request.block
    setting.text = str(request.text) if request.text else None
    setting.held_out = str(request.held_out) if request.held_out else None
    setting.hashes = dict(basis)
    setting.device = str(bench.model.device)
    setting.dtype = str(bench.model.dtype).removeprefix("torch.")
    setting.threads = torch.get_num_threads()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
