"""Compare methods: plan -> run -> statistics -> recommendation -> report, and the winner's folder.

Selection (learning rates, finalists, ranking, recommendation) reads validation answers only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modalign.cache import cache_directory
from modalign.comparison.assemble import Gathered, assemble
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import Job, JobResult, load_scores
from modalign.comparison.report import write_report
from modalign.comparison.results import Comparison
from modalign.comparison.runner import Silent, Watcher, refuse_unguarded, run_jobs
from modalign.comparison.winner import answer_examples, save_winner
from modalign.data.media import blank_like
from modalign.data.records import Media
from modalign.errors import ModalignError, UsageError
from modalign.progress import Progress
from modalign.runs import command_line, run_folder
from modalign.training.budget import Budget
from modalign.training.doctor.preflight import preflight
from modalign.training.methods import Method, resolve_methods
from modalign.training.objectives import check_stages
from modalign.training.recipes import check_data
from modalign.training.sources import feature_store, fill_store, runs_with_model
from modalign.training.splits import Splits, load_splits, that_fit
from modalign.training.tool_methods import entries_of
from modalign.training.trainer import device_of


@dataclass
class Prepared:
    """What all jobs share."""

    config: CompareConfig
    methods: list[Method]
    splits: Splits
    blanks: dict[str, Media]
    cache: Path
    out: Path

    def method(self, name: str) -> Method:
        """The method of this name."""
        return next(method for method in self.methods if method.name == name)

    def job(self, method: Method, seed: int, factor: float | None) -> Job:
        """The job of one method under one seed."""
        return Job(
            what=method,
            seed=seed,
            factor=factor,
            budget=self.config.budget,
            parts=self.config.parts,
            settings=self.config.training,
            train=self.splits.train,
            val=self.splits.val,
            evaluation=self.splits.evaluation,
            blanks=self.blanks,
            cache=self.cache,
            folder=self.out / "runs" / method.key / f"seed-{seed}",
            threads=self.config.threads,
            text=self.splits.text,
        )


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
    gathered = Gathered(prepared.splits, first, others, prepared.out / "runs")
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


def prepare(
    config: CompareConfig, out: Path, cache: Path, progress: Progress | None = None
) -> Prepared:
    """Validate everything before step 0: names, budget, files, template; then fill the feature cache."""
    methods = resolve_methods(
        config.methods, config.stages, config.recipes, list(config.parts.tools)
    )
    for method in methods:
        check_stages(method.stages, everywhere=True)
    Budget.parse(config.budget)
    llm = config.parts.load_llm()
    splits = load_splits(config.data, llm.tokenizer, progress, config.parts.modalities)
    splits = that_fit(splits, config.parts, config.data, progress)
    if not splits.evaluation:
        splits.notes.append(
            "No evaluation data was given (--eval): accuracies are on validation data."
        )
    for method in methods:
        splits.notes += check_data(method.name, method.stages, splits.train, splits.text)
    device = device_of(config.training)
    media = splits.media()
    blanks = {medium.modality: medium for medium in reversed(media)}
    blanks = {modality: blank_like(medium) for modality, medium in blanks.items()}
    seen = [medium for sample in splits.train for medium in sample.media]
    for tools in dict.fromkeys(method.tools for method in methods if method.tools):
        chain, _ = entries_of(tools, config.parts, llm.tokenizer, cache)
        if chain is not None:
            chain.fill([*media, *blanks.values()], progress)
    for raw in sorted({method.facts.raw_input for method in methods if not method.tools}):
        for encoder in config.parts.load_encoders(seen, raw):
            if not runs_with_model(encoder, config.training.encoder, raw):
                store = feature_store(encoder, cache)
                fill_store(store, encoder, [*media, *blanks.values()], device, progress)
    named = {word.strip() for word in config.methods}
    warnings, refused = preflight(
        config.parts,
        splits,
        config.training,
        methods,
        cache,
        llm=llm,
        processes=config.workers,
        optional={method.name for method in methods} - named,
    )
    splits.notes += [*warnings, *(f"Left out: {name}: {why}" for name, why in refused.items())]
    methods = [method for method in methods if method.name not in refused]
    if not methods:
        raise UsageError(f"no method can work between these parts: {'; '.join(refused.values())}")
    return Prepared(config, methods, splits, blanks, cache, out)


def run_all(prepared: Prepared, watcher: Watcher) -> tuple[list[JobResult], list[JobResult]]:
    """Every method under the first seed; the finalists, by validation accuracy, under the others."""
    config = prepared.config
    jobs = [prepared.job(method, 0, None) for method in prepared.methods]
    results = run_jobs(jobs, config.workers, watcher)
    first = [results[job.key] for job in jobs]
    chosen = finalists(prepared, first, config.finalists)
    later = [
        prepared.job(method, seed, result.factor)
        for seed in range(1, config.seeds)
        for method, result in zip(prepared.methods, first, strict=True)
        if method.name in chosen
    ]
    more = run_jobs(later, config.workers, watcher)
    return first, [more[job.key] for job in later]


def finalists(prepared: Prepared, first: Sequence[JobResult], count: int | None) -> list[str]:
    """The methods with the best validation accuracy under the first seed."""
    accuracy: dict[str, float] = {}
    for method, result in zip(prepared.methods, first, strict=True):
        if result.failure is None:
            scores = load_scores(prepared.job(method, 0, None).folder)
            accuracy[result.method] = float(scores["val"].mean())
    ranked = sorted(accuracy, key=lambda name: (-accuracy[name], name))
    if count is None:
        return ranked
    return [name for name in ranked if not prepared.method(name).control][:count]
