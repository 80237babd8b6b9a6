"""From trainings to the results: estimates over samples and seeds, paired differences, rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.compression.distillation.judging import Judged
from modalign.compression.distillation.report import groups_of
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.recovery import Recovered, Scores
from modalign.compression.pruning.results import TITLES, Cutting, Pruning, Row
from modalign.compression.pruning.speed import Timing
from modalign.compression.pruning.targets import weights_bytes
from modalign.compression.pruning.texts import Texts
from modalign.data.corpus import is_corpus
from modalign.data.supervision import Sample
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference, differences, resamples_for
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.runs import command_line
from modalign.version import __version__

NATS = "nats per token"
FIXED = ("parent", "pruned")


def means(
    judged: Mapping[str, Sequence[Judged]],
    of: Callable[[Judged], Any],
    samples: Sequence[Sample],
    fixed: Collection[str] = FIXED,
    unit: str = NATS,
) -> dict[str, Estimate]:
    """Every model's mean over samples and trainings."""
    arrays = {
        name: np.array([np.asarray(of(one), dtype=float) for one in found])
        for name, found in judged.items()
    }
    return estimate_means(arrays, groups=groups_of(samples), fixed=fixed, unit=unit)


def assemble(
    config: PruneConfig,
    texts: Texts,
    *,
    mode: str,
    cutting: Cutting,
    judged: Mapping[str, Sequence[Scores]],
    recovered: Mapping[str, Sequence[Recovered]],
    folders: Mapping[str, Path],
    timings: Mapping[str, Sequence[Timing]],
    clean: float,
    options: Mapping[str, Any],
    device: str,
    patches: Sequence[str],
    seconds: float,
) -> Pruning:
    """Return the results of a run.

    Args:
        config: what was asked for.
        texts: the data.
        mode: of the recovery.
        cutting: what was cut.
        judged: row -> scores of its models as they were cut.
        recovered: row -> its recoveries.
        folders: row -> its model, of those that are kept.
        timings: row -> its times.
        clean: largest difference of logits in a clean process.
        options: as given.
        device: where it ran.
        patches: files that were written.
        seconds: of the run.
    """
    scores = {name: list(found) for name, found in judged.items()}
    scores |= {name: [each.scores for each in found] for name, found in recovered.items()}
    ordered = {name: scores[name] for name in TITLES if name in scores}
    figures = _figures(config, texts, ordered)
    result = "recovered" if recovered else "pruned"
    rows = [
        Row(
            name=name,
            title=TITLES[name],
            kind="result" if name in ("pruned", "recovered") else "reference",
            parameters=cutting.parameters[0 if name.startswith("parent") else 1],
            bytes=weights_bytes(folders[name]) if name in folders and folders[name].is_dir() else None,
            timings=list(timings.get(name, ())),
            **{figure: found[name] for figure, found in figures.items()},
            **_costs(recovered.get(name, ())),
        )
        for name in ordered
    ]  # fmt: skip
    held = {name: [each.held_out for each in found] for name, found in ordered.items()}
    found = Pruning(
        model=config.model,
        part=config.part,
        target=config.target,
        cutting=cutting,
        recovered=mode,
        recovered_by=config.recover_by,
        budget=config.recover_budget,
        data=config.data or "samples of the parent, which favour it",
        evaluation=config.evaluation,
        calibrated=len(texts.calibration),
        held_out=len(texts.held_out),
        evaluated=len(texts.task),
        seeds=config.seeds,
        rows=rows,
        differences=_differences(held, result, texts.held_out),
        clean_process_difference=clean,
        patches=list(patches),
        options=dict(options),
        command=command_line(),
        version=__version__,
        device=device,
        seconds=seconds,
    )
    found.warnings = _warnings(config, found, result)
    return found


def _figures(
    config: PruneConfig, texts: Texts, scores: Mapping[str, Sequence[Scores]]
) -> dict[str, dict[str, Estimate]]:
    held = {name: [each.held_out for each in found] for name, found in scores.items()}
    figures = {"loss": means(held, lambda one: one.nll, texts.held_out)}
    if not texts.plain:
        figures["accuracy"] = means(held, lambda one: one.correct, texts.held_out, unit="share")
    if texts.task:
        task = {n: [each.task for each in f if each.task] for n, f in scores.items()}
        figures["task_loss"] = means(task, lambda one: one.nll, texts.task)
        if config.evaluation and not is_corpus(Path(config.evaluation)):
            found = means(task, lambda one: one.correct, texts.task, unit="share")
            figures["task_accuracy"] = found
    return figures


def _costs(recovered: Sequence[Recovered]) -> dict[str, float]:
    if not recovered:
        return {}
    names = ("samples", "seconds", "flops")
    return {name: float(np.mean([getattr(each, name) for each in recovered])) for name in names}


def _differences(
    held: Mapping[str, Sequence[Judged]], result: str, samples: Sequence[Sample]
) -> list[Difference]:
    """Compare the result with every row but the parent; more is better."""
    others = [name for name in held if name not in (result, "parent")]
    if result == "recovered":
        others.remove("random")  # its recovered self is what compares
    gains = {name: -np.array([one.nll for one in found]) for name, found in held.items()}
    drawn = hierarchical_bootstrap(
        gains,
        groups=groups_of(samples),
        resamples=resamples_for(len(gains)),
        fixed=FIXED,
    )
    return differences(drawn, [(result, name) for name in others], unit=NATS)


def _warnings(config: PruneConfig, found: Pruning, result: str) -> list[str]:
    """What a reader must know before the figures."""
    warned = []
    timed = found.row(result).timings
    ratio = timed[0].next_ratio if timed else None
    if config.latency is not None and ratio is not None and ratio.value > config.latency:
        warned.append(
            f"The target is missed: the next token takes {ratio.value:.2f} of the parent's time, and "
            f"{config.latency:g} were asked for."
        )
    by = {each.second: each for each in found.differences}
    for name, what in (
        ("scratch", "a model of the same size from scratch"),
        ("random recovered", "pruning by chance"),
    ):
        if name in by and by[name].verdict != "first":
            said = "is better than" if by[name].verdict == "second" else "cannot be told from"
            warned.append(f"Pruning was not worth it here: {what} {said} it.")
    return warned
