"""Compare methods: plan -> run -> statistics -> recommendation -> report, and the winner's folder.

Selection (learning rates, additional trainings, ranking, recommendation) uses validation answers only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modalign.cache import cache_directory
from modalign.clusters import Cluster
from modalign.comparison.assemble import Gathered, assemble, candidates, choice
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import RUNS, Job, JobResult
from modalign.comparison.metrics import Metric
from modalign.comparison.on_ray import pool_of
from modalign.comparison.prepared import Prepared, prepare
from modalign.comparison.processes import refuse_unguarded
from modalign.comparison.racing import (
    BEGINNING,
    NOTHING_LEARNT,
    Standing,
    Total,
    luck_in_picks,
    race,
)
from modalign.comparison.recommendation import recommend, replicate_picks
from modalign.comparison.report import write_report
from modalign.comparison.results import Comparison, Schedule
from modalign.comparison.runner import Pool, Silent, Watcher, run_jobs
from modalign.comparison.winner import examples, save_winner
from modalign.errors import ModalignError
from modalign.models.quiet import quietly
from modalign.progress import Progress
from modalign.runs import command_line, run_folder

# Fields that a resumed comparison may change.
SCHEDULING = ("seeds", "confidence", "total", "plan_for")


@quietly()
def compare(
    config: str | Path | CompareConfig | None = None,
    *,
    out: str | Path = "runs/compare",
    resume: bool = False,
    overwrite: bool = False,
    ray: str | Cluster | None = None,
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
        resume: continue the comparison in the folder; finished methods are kept.
        overwrite: delete the comparison in the folder and start again.
        ray: where the trainings run: ``local`` or a cluster's address; None: in processes of this machine.
        cache: of encoder features; the user's cache directory by default.
        progress: called during preparation with (name, done, total).
        watcher: notified about the jobs.
        changed: differences from the parent configuration, for the report.
        **changes: fields to override.

    Returns:
        The contents of ``report.json``.

    Raises:
        UsageError: wrong configuration, a folder that contains a comparison or is not writable, or a cluster
            that cannot be reached or lacks what a training needs.
        DataError: broken data.
        ModalignError: no method could be trained, or the calling script has no main guard.
    """
    refuse_unguarded()
    started = time.time()
    if not isinstance(config, CompareConfig):
        config, found = load_config(config, changes, progress)
        changed = {**found, **(changed or {})}
    recorded, cache = config.model_dump(mode="json"), cache or cache_directory()
    claim = run_folder(Path(out), recorded, resume=resume, overwrite=overwrite, free=SCHEDULING)
    with claim as folder, pool_of(config, folder.path, cache, ray) as pool:
        prepared = prepare(config, folder.path, cache, progress)
        folder.begin()
        prepared.store()
        trainings = Running(prepared, pool, watcher or Silent())
        return _compare(trainings, started, changed or {}, progress)


def _compare(
    trainings: Running, started: float, changed: dict[str, str], progress: Progress | None
) -> Comparison:
    """Run missing jobs, assemble the report and save the winner."""
    prepared = trainings.prepared
    schedule, results = run_all(trainings), trainings.results
    gathered = Gathered(
        prepared.splits, results, prepared.out / RUNS, Metric.named(prepared.config.metric)
    )
    comparison = assemble(gathered, prepared.config, prepared.methods)
    comparison.schedule = schedule
    comparison.setting.changed = changed
    comparison.setting.command = command_line()
    comparison.setting.started = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
    try:
        if comparison.recommendation is not None:
            comparison.examples = examples(prepared, results)
            save_winner(prepared, comparison, results, progress)
    except ModalignError as error:
        comparison.notes.append(f"The winner was not saved: {error}")
        raise
    finally:  # keep the measurements even if saving the winner fails
        comparison.setting.finished = datetime.now(UTC).isoformat(timespec="seconds")
        comparison.setting.seconds = time.time() - started
        write_report(comparison, prepared.out)
    if comparison.recommendation is None:
        reasons = "; ".join(f"{m.name}: {m.failure}" for m in comparison.methods)
        raise ModalignError(f"no method could be trained: {reasons}")
    return comparison


def run_all(trainings: Running) -> Schedule:
    """Run all trainings of the configuration, or those that the race adds."""
    config = trainings.prepared.config
    names = [method.name for method in trainings.prepared.methods]
    if config.seeds == "auto":
        total = Total.of(config.total, len(names))
        return race(trainings, names, config.confidence, total)
    first = min(config.seeds, BEGINNING)
    trainings.add([name for _ in range(first) for name in names])
    if config.seeds > first and trainings.standing().method is None:
        said = f"Stopped after {first} trainings of every method: {NOTHING_LEARNT}."
        return Schedule(seeds=config.seeds, stop="nothing learnt", words=said)
    trainings.add([name for _ in range(config.seeds - first) for name in names])
    often = "once" if config.seeds == 1 else f"{config.seeds} times"
    said = f"Every method was trained {often}."
    return Schedule(seeds=config.seeds, stop="all trained", words=said)


class Running:
    """A comparison's trainings, as the race's interface."""

    def __init__(self, prepared: Prepared, pool: Pool, watcher: Watcher) -> None:
        self.prepared, self.pool, self.watcher = prepared, pool, watcher
        self.results: list[JobResult] = []

    def add(self, methods: Sequence[str]) -> None:
        """Train each of these once more, under its next seed; one in which nothing trains is run once."""
        config, jobs = self.prepared.config, []
        next_seed = Counter(dict.fromkeys(methods, config.first_seed))
        next_seed.update(result.method for result in self.results if result.method in next_seed)
        for name in methods:
            again = next_seed[name] > config.first_seed
            if again and not self.prepared.method(name).trains(config.training.llm):
                continue
            jobs.append(Job(self.prepared.out, name, next_seed[name], config.first_seed))
            next_seed[name] += 1
        found = run_jobs(jobs, self.pool, self.watcher)
        self.results += [found[job] for job in jobs]

    def counts(self) -> dict[str, int]:
        """Trainings of the candidates; a method that failed once is not trained again."""
        gathered = self._gathered()
        names = candidates(gathered, self.prepared.methods)
        return {n: len(gathered.of(n)) for n in names if not gathered.failed(n)}

    def spent(self, kind: str, method: str | None = None) -> float:
        """Return what the trainings have spent, counting learning-rate trials once."""
        own = [r for r in self.results if r.failure is None and method in (None, r.method)]
        return float(len(own) if kind == "trainings" else sum(getattr(r, kind) for r in own))

    def standing(self) -> Standing:
        """What validation says of the methods."""
        found = choice(self._gathered(), self.prepared.methods)
        if not found.learnt:
            return Standing(None, None, {})
        drawn = found.drawn()
        chosen = recommend(found.answers, found.costs, drawn=drawn)
        doubt = luck_in_picks(drawn, replicate_picks(drawn, found.costs))
        return Standing(chosen.method, chosen.confidence, doubt)

    def tell(self, said: str) -> None:
        """Report the progress of the race."""
        self.watcher.decided(said)

    def _gathered(self) -> Gathered:
        metric = Metric.named(self.prepared.config.metric)
        return Gathered(self.prepared.splits, self.results, self.prepared.out / RUNS, metric)
