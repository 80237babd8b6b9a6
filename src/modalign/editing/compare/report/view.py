"""What the report says in words."""

from __future__ import annotations

import json

from modalign.editing.benchmarks.rows import Answer
from modalign.editing.compare.results import (
    EditComparison,
    EditingCost,
    MethodPoint,
    Mode,
    ScoreDifference,
    Status,
    TableRow,
)
from modalign.numbers import words as fmt
from modalign.numbers.pairs import NO_DIFFERENCE

MODE_WORDS: dict[Mode, str] = {
    "batch": "Batch: one patch for all edits",
    "sequential": "Sequential: step by step, each patch on top of the ones before",
}
STATUS_WORDS: dict[Status, str] = {
    "done": "holds, and its paraphrases follow",
    "not reached": "no value was found that makes the model say the target",
    "not written": "a value was found, but the weights do not reproduce it",
    "overwritten": "held right after its own step, lost to later edits",
    "not generalised": "the prompt itself is answered with the target, but not every paraphrase is",
}
STATUS_COLOURS: dict[Status, int] = {  # numbers of the style sheet's colours
    "done": 2,
    "not generalised": 4,
    "overwritten": 3,
    "not written": 1,
    "not reached": 6,
}
MEANINGS = {
    "S": "harmonic mean of ES, PS and NS",
    "ES": "share of edited prompts where the target is likelier than the truth",
    "PS": "the same on paraphrases",
    "NS": "share of neighbours where the truth is still likelier than the target",
    "score": "harmonic mean of efficacy, paraphrase and specificity",
    "efficacy": "share of the target's tokens that come first after the edited question",
    "paraphrase": "the same after the question in other words",
    "specificity": "share of right tokens on unrelated questions",
    "free": "edited prompts continued with the target when the model writes freely",
}
SHOWN_EDITS = 200  # listed one by one in the page; report.json holds all
LONGEST = 60


def gap(found: ScoreDifference) -> str:
    """Write a difference as ``+4.1 (+1.0 to +7.2)``."""
    return f"{signed(found.value)} ({signed(found.low)} to {signed(found.high)})"


def signed(value: float) -> str:
    """Write a signed number as ``+4.1``."""
    rounded = round(value, 1)
    if rounded == 0:
        return "0.0"
    return f"{'+' if rounded > 0 else fmt.MINUS}{abs(rounded):.1f}"


def verdict(comparison: EditComparison, found: ScoreDifference) -> str:
    """Say which method is better, or that no difference was found."""
    if found.verdict == NO_DIFFERENCE:
        return NO_DIFFERENCE
    better = found.first if found.verdict == "first" else found.second
    return f"{comparison.title_of(better)} is better"


def differences_at(
    comparison: EditComparison, mode: Mode, size: int, metric: str | None = None
) -> list[ScoreDifference]:
    """Return the pairs of one size and mode, for the headline score unless a part is named."""
    wanted = (mode, size, metric or comparison.headline)
    return [d for d in comparison.differences if (d.mode, d.size, d.metric) == wanted]


def headline_pair(comparison: EditComparison, mode: Mode) -> str | None:
    """Compare PMET with MEMIT at the largest size, in a sentence; without them, the first two methods."""
    pairs = differences_at(comparison, mode, comparison.sizes[-1])
    if not pairs:
        return None
    found = next((d for d in pairs if {d.first, d.second} == {"pmet", "memit"}), pairs[0])
    first, second = comparison.title_of(found.first), comparison.title_of(found.second)
    return (
        f"{first} minus {second} in {found.metric} at {edits(found.size)}, {mode}: {gap(found)} points "
        f"on the same {found.n} edits; {verdict(comparison, found)} (p {fmt.p_value(found.p_holm)}, "
        "Holm)."
    )


def edits(count: int) -> str:
    """Write a count as ``1 edit`` or ``100 edits``."""
    return f"{count:,} edit{'' if count == 1 else 's'}"


def layer_words(point: MethodPoint) -> str:
    """Write |Delta| / |W| of each layer written, first to last: ``0.22, 1.08, 2.40``."""
    return ", ".join(f"{value:.2f}" for value in point.layers.values()) or fmt.MISSING


def statistics_words(cost: EditingCost) -> str:
    """Say how long taking C0 took, and which method took it."""
    taken = fmt.seconds(cost.statistics_seconds) if cost.statistics_seconds else fmt.MISSING
    return taken if cost.statistics_of is None else f"{taken} (those of {cost.statistics_of})"


def value_words(cost: EditingCost) -> str:
    """Say how long a value took, over how many values, or whose they were."""
    values = fmt.seconds(cost.value_seconds)
    if cost.values_of is not None:
        return f"{values} (those of {cost.values_of})"
    return values if cost.value_seconds is None else f"{values} (over {cost.values})"


def stage_words(cost: EditingCost) -> str:
    """Write the stages as ``values 12.3 s, solve 85 ms``."""
    return ", ".join(f"{name} {fmt.seconds(spent)}" for name, spent in cost.stages.items())


def said(answer: Answer) -> str:
    """Return what a model said: its free answer if one was asked for, else its likeliest tokens."""
    words = " ".join((answer.generated if answer.generated is not None else answer.says).split())
    if not words:
        return "(nothing)"
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def probability(answer: Answer, kind: str) -> str:
    """Write the wanted answer's probability: the target's, or the truth's after a neighbour."""
    value = answer.truth if kind == "neighbour" else answer.target
    if value is None:
        return fmt.MISSING
    return "< 0.01" if value < 0.005 else f"{value:.2f}"


def search_text(row: TableRow) -> str:
    """Return the text that the page's search looks in."""
    parts = [row.id, row.subject, row.target, row.truth or ""]
    return " ".join([*parts, *(p.prompt for p in row.prompts[:1])]).lower()


def setting_rows(comparison: EditComparison) -> list[tuple[str, str]]:
    """Return the settings of the comparison, as rows."""
    s = comparison.setting
    rows = [
        ("Model", comparison.model),
        ("Edits", f"{comparison.edits} ({comparison.available} that can be used)"),
        ("Text of the key statistics", s.text or "what the model itself writes"),
        ("Held-out text", s.held_out or "none"),
        ("Seed", str(s.seed)),
        ("Edits per sequential step", str(s.block) if s.block else "a tenth of the edits"),
        ("Bootstrap replicates of differences", f"{s.resamples:,}"),
        ("Free generation", "yes" if s.generate else "no"),
        ("Machine", f"{s.device}, {s.dtype}, {s.threads} threads"),
        ("Started, finished", f"{s.started}, {s.finished} (this run {fmt.seconds(s.seconds)})"),
    ]
    rows += [(f"Version of {name}", value) for name, value in s.versions.items()]
    rows += [(f"Hash of {name}", value) for name, value in s.hashes.items()]
    return rows + [
        (f"Settings of {info.title}", json.dumps(info.settings | {"layers": info.layers}))
        for info in comparison.methods
    ]
