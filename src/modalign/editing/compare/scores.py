"""Compare methods with each other on the same edits, and join draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modalign.editing.benchmarks.results import count_known, harmonic_mean
from modalign.editing.benchmarks.scores import HEADLINE, PARTS, Task
from modalign.editing.compare.results import Mode, ScoreDifference
from modalign.numbers import pairs
from modalign.numbers.bootstrap import Floats, mean_of_few, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import resamples_for, sample_replicates


def over_draws(found: Sequence[Estimate]) -> Estimate:
    """Average one metric over draws, with an interval by Student's t where there are several."""
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
    """Compare all pairs of methods on the same records, per score, with p-values corrected over the pairs.

    Args:
        columns: method -> metric -> (n,), the same records in the same order for every method.
        task: the benchmark whose headline and parts are compared.
        mode, size: to which the columns belong.
        seed: of the bootstrap; records are resampled jointly for all methods.
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
