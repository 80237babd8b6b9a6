"""Compare methods: plan -> run -> statistics -> recommendation -> report, and the winner's folder.

Selection (learning rates, finalists, ranking, recommendation) reads validation answers only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modalign.cache import cache_directory
from modalign.comparison.assemble import Gathered, assemble
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import RUNS, Job, JobResult, load_scores
from modalign.comparison.prepared import Prepared, prepare
from modalign.comparison.report import write_report
from modalign.comparison.results import Comparison
from modalign.comparison.runner import Silent, Watcher, refuse_unguarded, run_jobs
from modalign.comparison.winner import answer_examples, save_winner
from modalign.errors import ModalignError
from modalign.progress import Progress
from modalign.runs import command_line, run_folder


def compare(
    config: str | Path | CompareConfig | None = None,
    *,
    out: str | Path = "runs/compare",
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
    changed: dict[str, str] | None = None,
    **changes: Any,
) -> Comparison:
    """Compare methods under one budget and write the report and the winner to ``out``.

    Args:
        config: a YAML file, a resolved configuration, or None for the built-in starter.
        out: folder of the runs, ``report.html``, ``report.json``, ``report.md`` and ``best/``.
        resume: go on in a folder that holds a comparison; finished methods are kept.
        overwrite: delete the comparison that the folder holds, and begin anew.
        cache: of encoder features; the user's cache directory by default.
        progress: told of preparation (name, done, total).
        watcher: told of the jobs.
        changed: what differs from the parent configuration, for the report.
        **changes: fields that replace the configuration's.

    Returns:
        everything found: the contents of ``report.json``.

    Raises:
        UsageError: a wrong configuration, or a folder that holds a comparison already, or cannot be written.
        DataError: broken data.
        ModalignError: no method could be trained, or the calling script has no main guard.
    """
    refuse_unguarded()
    started = time.time()
    if not isinstance(config, CompareConfig):
        config, found = load_config(config, changes, progress)
        changed = {**found, **(changed or {})}
    with run_folder(
        Path(out), config.model_dump(mode="json"), resume=resume, overwrite=overwrite
    ) as folder:
        prepared = prepare(config, folder.path, cache or cache_directory(), progress)
        folder.begin()
        prepared.store()
        return _compare(prepared, started, changed or {}, progress, watcher or Silent())


def _compare(
    prepared: Prepared,
    started: float,
    changed: dict[str, str],
    progress: Progress | None,
    watcher: Watcher,
) -> Comparison:
    """Run what is missing, assemble the report, save the winner."""
    first, others = run_all(prepared, watcher)
    gathered = Gathered(prepared.splits, first, others, prepared.out / RUNS)
    comparison = assemble(gathered, prepared.config, prepared.methods)
    comparison.setting.changed = changed
    comparison.setting.command = command_line()
    comparison.setting.started = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
    try:
        if comparison.recommendation is not None:
            comparison.examples = answer_examples(prepared, first, progress)
            save_winner(prepared, comparison, [*first, *others], progress)
    except ModalignError as error:
        comparison.notes.append(f"The winner was not saved: {error}")
        raise
    finally:  # what was measured is kept whatever becomes of the winner
        comparison.setting.finished = datetime.now(UTC).isoformat(timespec="seconds")
        comparison.setting.seconds = time.time() - started
        write_report(comparison, prepared.out)
    if comparison.recommendation is None:
        reasons = "; ".join(f"{m.name}: {m.failure}" for m in comparison.methods)
        raise ModalignError(f"no method could be trained: {reasons}")
    return comparison


def run_all(prepared: Prepared, watcher: Watcher) -> tuple[list[JobResult], list[JobResult]]:
    """Every method under the first seed; the finalists, by validation accuracy, under the others."""
    config, out = prepared.config, prepared.out

    def run(jobs: list[Job]) -> list[JobResult]:
        cache = prepared.cache
        found = run_jobs(jobs, config.workers, config.threads, cache, watcher, filled=True)
        return [found[job] for job in jobs]

    first = run([Job(out, method.name, 0) for method in prepared.methods])
    chosen = finalists(prepared, first, config.finalists)
    later = [
        Job(out, method.name, seed)
        for seed in range(1, config.seeds)
        for method in prepared.methods
        if method.name in chosen
    ]
    return first, run(later)


def finalists(prepared: Prepared, first: Sequence[JobResult], count: int | None) -> list[str]:
    """The methods with the best validation accuracy under the first seed."""
    accuracy: dict[str, float] = {}
    for result in first:
        if result.failure is None:
            scores = load_scores(Job(prepared.out, result.method, result.seed).run)
            accuracy[result.method] = float(scores["val"].mean())
    ranked = sorted(accuracy, key=lambda name: (-accuracy[name], name))
    if count is None:
        return ranked
    return [name for name in ranked if not prepared.method(name).control][:count]
