"""Turn cells into a report: join draws, pair methods, add up costs, pick out the worst neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalign.editing.benchmarks.results import TEACHER_FORCED
from modalign.editing.benchmarks.rows import EditRow
from modalign.editing.benchmarks.scores import (
    HEADLINE,
    PARTS,
    columns_of,
    metrics_of,
    succeeded,
)
from modalign.editing.compare.cell import Workbench
from modalign.editing.compare.measuring import REST
from modalign.editing.compare.plan import Plan
from modalign.editing.compare.request import CompareRequest
from modalign.editing.compare.results import (
    CellResult,
    ComparisonSetting,
    EditComparison,
    EditingCost,
    FailedCell,
    MethodInfo,
    MethodPoint,
    Mode,
    Reference,
    ScoreDifference,
    TableAnswer,
    TablePrompt,
    TableRow,
    WorstNeighbour,
)
from modalign.editing.compare.scores import differences, over_draws
from modalign.editing.config import ValueConfig
from modalign.editing.methods import Method
from modalign.editing.methods.closed_form import ClosedForm
from modalign.numbers.bootstrap import Floats
from modalign.numbers.estimate import exactly

STATISTICS = "key statistics"
VALUES = "values"
TABLE_UP_TO = 100
WORST = 30


@dataclass(frozen=True)
class _Group:
    """The cells of one point."""

    method: str
    mode: Mode
    size: int
    computed_as: Mode
    cells: list[CellResult]

    @property
    def finished(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.failure is None]

    @property
    def rows(self) -> list[EditRow]:
        return [outcome.row for cell in self.finished for outcome in cell.outcomes]


def assemble(
    request: CompareRequest,
    plan: Plan,
    cells: Mapping[str, CellResult],
    before: Mapping[int, EditRow],
    bench: Workbench,
    *,
    setting: ComparisonSetting,
    notes: Sequence[str],
) -> EditComparison:
    """Assemble the report.

    Args:
        request: what was asked for.
        plan: what was to be run.
        cells: key -> result.
        before: position of an edit -> the unedited model's row.
        bench: what all cells share.
        setting: how it was run.
        notes: those collected so far.
    """
    groups = _groups(plan, cells)
    size = _table_size(plan, request.table)
    every = [cell for cell in cells.values() if cell.failure is None]
    return EditComparison(
        model=request.model,
        edits=str(request.edits),
        task=bench.task,
        available=len(bench.edits),
        sizes=list(plan.sizes),
        modes=list(plan.modes),
        headline=HEADLINE[bench.task],
        parts=list(PARTS[bench.task]),
        methods=[
            MethodInfo(
                name=name,
                title=method.title,
                layers=bench.layers[name],
                settings=method.config.model_dump(mode="json"),
            )
            for name, method in bench.methods.items()
        ],
        points=[_point(group, bench) for group in groups if group.finished],
        references=_references(plan, before, bench),
        differences=_differences(plan, groups, bench),
        costs=charge_shared(_costs(plan, groups), bench.methods, bench.layers),
        table_size=size,
        table=_table(plan, groups, before, size) if size is not None else [],
        worst=_worst(plan, groups, before),
        failures=[
            FailedCell.model_validate(cell, from_attributes=True)
            for cell in cells.values()
            if cell.failure is not None
        ],
        notes=[*notes, *_notes(before, every, bench)],
        setting=setting,
    )


def _groups(plan: Plan, cells: Mapping[str, CellResult]) -> list[_Group]:
    groups = []
    for mode in plan.modes:
        for size in plan.sizes:
            for method in plan.methods:
                run = plan.computed_as(method, mode, size)
                keys = [f"{method}-{run}-{size}-{i}" for i in range(len(plan.draws[size]))]
                groups.append(_Group(method, mode, size, run, [cells[key] for key in keys]))
    return groups


def _table_size(plan: Plan, wanted: int | None) -> int | None:
    if wanted is not None and wanted in plan.sizes:
        return wanted
    small = [size for size in plan.sizes if size <= TABLE_UP_TO]
    return small[-1] if small else None


def _point(group: _Group, bench: Workbench) -> MethodPoint:
    finished = group.finished
    metrics = metrics_of(columns_of(group.rows, bench.task), bench.task, seed=bench.seed)
    for name in dict.fromkeys(name for cell in finished for name in cell.measured):
        found = [cell.measured[name] for cell in finished if name in cell.measured]
        metrics[name] = over_draws(found)
    names = dict.fromkeys(name for cell in finished for name in cell.layers)
    layers = {
        name: float(np.mean([cell.layers[name] for cell in finished if name in cell.layers]))
        for name in names
    }
    counted = Counter(outcome.status for cell in finished for outcome in cell.outcomes)
    return MethodPoint(
        method=group.method,
        mode=group.mode,
        size=group.size,
        computed_as=group.computed_as,
        draws=len(finished),
        failed_draws=len(group.cells) - len(finished),
        n=len(group.rows),
        metrics=metrics,
        statuses=dict(counted),
        layers=layers,
    )


def _references(plan: Plan, before: Mapping[int, EditRow], bench: Workbench) -> list[Reference]:
    """Score the unedited model on each size's edits, and a coin toss where two answers are compared."""
    found = []
    for size in plan.sizes:
        rows = [before[i] for draw in plan.draws[size] for i in draw]
        metrics = metrics_of(columns_of(rows, bench.task), bench.task, seed=bench.seed)
        found.append(Reference(name="unedited", size=size, metrics=metrics))
    if bench.task == "counterfact":
        coin = exactly(50.0, 0, "percent").model_copy(update={"protocol": TEACHER_FORCED})
        names = (HEADLINE["counterfact"], *PARTS["counterfact"])
        found.append(Reference(name="coin", size=None, metrics=dict.fromkeys(names, coin)))
    return found


def _differences(plan: Plan, groups: Sequence[_Group], bench: Workbench) -> list[ScoreDifference]:
    """Compare pairs of methods on the draws that every compared method finished."""
    found = []
    for mode in plan.modes:
        for size in plan.sizes:
            here = [g for g in groups if (g.mode, g.size) == (mode, size) and g.finished]
            if not here:
                continue
            common = set.intersection(*({cell.draw for cell in g.finished} for g in here))
            columns: dict[str, dict[str, Floats]] = {}
            for group in here:
                rows = [
                    outcome.row
                    for cell in group.finished
                    if cell.draw in common
                    for outcome in cell.outcomes
                ]
                if rows:
                    columns[group.method] = columns_of(rows, bench.task)
            found += differences(columns, bench.task, mode, size, seed=bench.seed)
    return found


def _costs(plan: Plan, groups: Sequence[_Group]) -> list[EditingCost]:
    found = []
    for mode in plan.modes:
        for method in plan.methods:
            mine = [g for g in groups if (g.method, g.mode) == (method, mode) and g.finished]
            if mine:
                found.append(_cost(method, mode, mine))
    return found


def _cost(method: str, mode: Mode, groups: Sequence[_Group]) -> EditingCost:
    cells = [cell for group in groups for cell in group.finished]
    stages: Counter[str] = Counter()
    for cell in cells:
        stages.update(cell.seconds)
    values = sum(cell.values_new for cell in cells)
    largest = groups[-1]
    apart = {STATISTICS, VALUES, REST}
    writing = [
        sum(spent for name, spent in cell.seconds.items() if name not in apart) / cell.size
        for cell in largest.finished
    ]
    peaks = [cell.peak_memory for cell in cells if cell.peak_memory is not None]
    return EditingCost(
        method=method,
        mode=mode,
        statistics_seconds=stages[STATISTICS],
        value_seconds=stages[VALUES] / values if values else None,
        values=values,
        write_seconds=float(np.mean(writing)),
        write_size=largest.size,
        evaluation_seconds=sum(cell.evaluation_seconds for cell in cells),
        peak_memory=max(peaks, default=None),
        stages=dict(stages),
    )


def charge_shared(
    costs: Sequence[EditingCost], methods: Mapping[str, Method], layers: Mapping[str, list[int]]
) -> list[EditingCost]:
    """Charge each method also for what it found in the store because another had computed it."""
    keys = {"value_seconds": _value_key, "statistics_seconds": _statistics_key}
    names = {"value_seconds": "values_of", "statistics_seconds": "statistics_of"}
    charged = []
    for cost in costs:
        update: dict[str, object] = {}
        for field, key in keys.items():
            mine = key(methods[cost.method], layers[cost.method])
            if mine is None or getattr(cost, field):
                continue
            for other in costs:
                if (other.mode, bool(getattr(other, field))) == (cost.mode, True) and (
                    key(methods[other.method], layers[other.method]) == mine
                ):
                    update[field] = getattr(other, field)
                    update[names[field]] = methods[other.method].title
                    break
        charged.append(cost.model_copy(update=update))
    return charged


def _value_key(method: Method, layers: Sequence[int]) -> tuple[object, ...] | None:
    """Return what determines a closed-form method's values; None for a method with none to share."""
    config = method.config
    if not isinstance(method, ClosedForm):
        return None
    found = config.value_settings(method.relax)
    return layers[-1], method.sites(), found, config.contexts, config.seed


def _statistics_key(method: Method, layers: Sequence[int]) -> tuple[object, ...] | None:
    """Return what determines the key statistics, given the model and the text."""
    if not isinstance(method.config, ValueConfig):
        return None
    return tuple(layers), method.config.tokens, method.config.seed


def _table(
    plan: Plan, groups: Sequence[_Group], before: Mapping[int, EditRow], size: int
) -> list[TableRow]:
    """Make the table of one size's first draw, edit by edit."""
    positions = plan.draws[size][0]
    rows = []
    for place, position in enumerate(positions):
        old = before[position]
        after = []
        for group in groups:
            cell = group.cells[0]
            if group.size != size or cell.failure is not None:
                continue
            outcome = cell.outcomes[place]
            after.append(
                TableAnswer(
                    method=group.method,
                    mode=group.mode,
                    status=outcome.status,
                    reason=outcome.reason,
                    answers=[prompt.after for prompt in outcome.row.prompts],
                )
            )
        prompts = [
            TablePrompt(kind=p.kind, prompt=p.prompt, wanted=p.wanted, before=p.after)
            for p in old.prompts
        ]
        rows.append(
            TableRow(
                id=old.id,
                subject=old.subject,
                target=old.target,
                truth=old.truth,
                prompts=prompts,
                after=after,
            )
        )
    return rows


def _worst(
    plan: Plan, groups: Sequence[_Group], before: Mapping[int, EditRow]
) -> list[WorstNeighbour]:
    """Find the neighbours whose right answer lost most probability, at the largest size."""
    found = []
    for group in groups:
        if group.size != plan.sizes[-1] or group.mode != group.computed_as:
            continue
        for cell in group.finished:
            for position, outcome in zip(
                plan.draws[group.size][cell.draw], cell.outcomes, strict=True
            ):
                found += _lost(group, before[position], outcome.row)
    found.sort(key=lambda each: each.after - each.before)
    # The same number for every method; otherwise one method that breaks everything would fill the list.
    taken: Counter[tuple[str, Mode]] = Counter()
    each = max(1, WORST // max(1, len({(w.method, w.mode) for w in found})))
    kept = []
    for one in found:
        taken[one.method, one.mode] += 1
        if taken[one.method, one.mode] <= each:
            kept.append(one)
    return kept


def _lost(group: _Group, old: EditRow, new: EditRow) -> list[WorstNeighbour]:
    found = []
    for then, now in zip(old.prompts, new.prompts, strict=True):
        if now.kind != "neighbour" or then.after.truth is None:
            continue
        if now.after.truth is None or now.after.truth >= then.after.truth:
            continue
        found.append(
            WorstNeighbour(
                method=group.method,
                mode=group.mode,
                size=group.size,
                edit=old.id,
                prompt=now.prompt,
                wanted=now.wanted,
                before=then.after.truth,
                after=now.after.truth,
                says=now.after.generated or now.after.says,
            )
        )
    return found


def _notes(
    before: Mapping[int, EditRow], cells: Sequence[CellResult], bench: Workbench
) -> list[str]:
    notes = []
    rewrites = [p for row in before.values() for p in row.prompts if p.kind == "rewrite"]
    said = sum(p.after.accuracy == 1.0 for p in rewrites)
    if said:
        notes.append(
            f"the unedited model already says {said} of {len(rewrites)} targets: these edits "
            "change nothing"
        )
    ahead = sum(succeeded(bench.task, p.after) for p in rewrites)
    if ahead > said:
        notes.append(f"before any edit {ahead} of {len(rewrites)} rewrites count as successes")
    if all(len(edit.paraphrases) <= 1 and len(edit.neighbours) <= 1 for edit in bench.edits):
        notes.append(
            "one paraphrase and one neighbour per edit (CounterFact as published has two and ten): "
            "a record's share is 0 or 100"
        )
    spoken = Counter((cell.method, note) for cell in cells for note in set(cell.notes))
    return notes + [f"{method}: {note}" for method, note in spoken]
