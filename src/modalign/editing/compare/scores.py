"""Scores from rows: what a cell keeps is every answer, and every figure of the report comes from these.

The formulas are those of ``benchmarks.counterfact`` and ``benchmarks.zsre``; here they are taken from
kept answers, so that draws can be joined, methods paired, and a comparison resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from modalign.editing.benchmarks.evaluate import Task
from modalign.editing.benchmarks.free_generation import judge
from modalign.editing.benchmarks.results import (
    FREE,
    TEACHER_FORCED,
    count_known,
    harmonic_mean,
    mean_or_nan,
    metric,
)
from modalign.editing.benchmarks.rows import Answer, EditRow, Kind, PromptRow
from modalign.editing.compare.results import Mode, ScoreDifference
from modalign.numbers import pairs
from modalign.numbers.bootstrap import RESAMPLES, Floats, mean_of_few, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import resamples_for, sample_replicates

HEADLINE: Mapping[Task, str] = {"counterfact": "S", "zsre": "score"}
PARTS: Mapping[Task, tuple[str, str, str]] = {
    "counterfact": ("ES", "PS", "NS"),
    "zsre": ("efficacy", "paraphrase", "specificity"),
}
KINDS: tuple[Kind, Kind, Kind] = ("rewrite", "paraphrase", "neighbour")

_Measure = Callable[[PromptRow], float | None]


def succeeded(task: Task, answer: Answer) -> bool:
    """Whether the wanted answer won: over the other one (CounterFact), at every token (zsRE)."""
    return bool(answer.success) if task == "counterfact" else answer.accuracy == 1.0


def columns_of(rows: Sequence[EditRow], task: Task) -> dict[str, Floats]:
    """Metric -> (n,) means over each record's prompts; NaN where it has none of the kind."""
    columns: dict[str, Floats] = {}
    for kind, name in zip(KINDS, PARTS[task], strict=True):
        cells = [[p for p in row.prompts if p.kind == kind] for row in rows]
        measures: dict[str, _Measure] = (
            _counterfact(kind) if task == "counterfact" else {name: _accuracy}
        )
        measures |= {f"free_{kind}": _free}
        for measure, of in measures.items():
            columns[measure] = np.array(
                [mean_or_nan([v for p in prompts if (v := of(p)) is not None]) for prompts in cells]
            )
    return columns


def _counterfact(kind: Kind) -> dict[str, _Measure]:
    letter = {"rewrite": "E", "paraphrase": "P", "neighbour": "N"}[kind]
    return {f"{letter}S": _success, f"{letter}M": _magnitude, f"{letter}A": _exact}


def _success(prompt: PromptRow) -> float | None:
    return float(bool(prompt.after.success))


def _magnitude(prompt: PromptRow) -> float | None:
    new, true = prompt.after.target, prompt.after.truth
    if new is None or true is None:
        return None
    return true - new if prompt.kind == "neighbour" else new - true


def _exact(prompt: PromptRow) -> float | None:
    return float(prompt.after.accuracy == 1.0)


def _accuracy(prompt: PromptRow) -> float | None:
    return prompt.after.accuracy


def _free(prompt: PromptRow) -> float | None:
    said = prompt.after.generated
    return None if said is None else float(judge(said, False, prompt.wanted).prefix)


def metrics_of(
    columns: Mapping[str, Floats], task: Task, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric with its interval over records, the headline first."""
    drawn = redrawn_means(columns, resamples, seed)
    n = len(next(iter(columns.values())))
    found: dict[str, Estimate] = {}
    if all(count_known(columns[part]) for part in PARTS[task]):
        headline = harmonic_mean(*(drawn[part] for part in PARTS[task]))
        found[HEADLINE[task]] = metric(headline, n, TEACHER_FORCED)
    ordered = [*PARTS[task], *(name for name in columns if name not in PARTS[task])]
    for name in ordered:
        known = count_known(columns[name])
        if known:
            unit = "percentage points" if name in {"EM", "PM", "NM"} else "percent"
            protocol = f"{FREE}, prefix" if name.startswith("free_") else TEACHER_FORCED
            found[name] = metric(drawn[name], known, protocol, unit)
    return found


def over_draws(found: Sequence[Estimate]) -> Estimate:
    """One metric of several draws: their mean, by Student's t where there are several."""
    if len(found) == 1:
        return found[0]
    mean = mean_of_few([each.value for each in found], over="draws", unit=found[0].unit)
    return mean.model_copy(update={"protocol": f"{found[0].protocol}, mean over draws"})


def differences(
    columns: Mapping[str, Mapping[str, Floats]],
    task: Task,
    mode: Mode,
    size: int,
    *,
    seed: int = 0,
) -> list[ScoreDifference]:
    """All pairs of methods on the same records, per score, corrected over the pairs.

    Args:
        columns: method -> metric -> (n,), the same records in the same order for every method.
        task: whose headline and parts are compared.
        mode, size: what the columns are of.
        seed: of the bootstrap; records are redrawn jointly for all methods.
    """
    joint = {f"{m}/{part}": columns[m][part] for m in columns for part in PARTS[task]}
    if len(columns) < 2 or not all(count_known(values) for values in joint.values()):
        return []
    drawn = redrawn_means(joint, resamples_for(len(columns)), seed)
    n = len(next(iter(joint.values())))
    found = []
    for name in (HEADLINE[task], *PARTS[task]):
        replicates = {m: _replicates(drawn, m, name, task) * 100 for m in columns}
        for pair in pairs.differences(sample_replicates(replicates, n), over="edits"):
            gap = pair.difference
            found.append(
                ScoreDifference(
                    mode=mode,
                    size=size,
                    metric=name,
                    first=pair.first,
                    second=pair.second,
                    value=gap.value,
                    low=gap.low,
                    high=gap.high,
                    n=n,
                    p_value=pair.p_value,
                    p_holm=pair.p_holm,
                    verdict=pair.verdict,
                )
            )
    return found


def _replicates(drawn: Mapping[str, Floats], method: str, name: str, task: Task) -> Floats:
    if name == HEADLINE[task]:
        return harmonic_mean(*(drawn[f"{method}/{part}"] for part in PARTS[task]))
    return drawn[f"{method}/{name}"]
