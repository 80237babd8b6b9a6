"""CounterFact's scores (Meng et al. 2022, arXiv 2202.05262; Meng et al. 2023, arXiv 2210.07229).

With s(p, t) the mean negative log-likelihood per token of answer t after prompt p, teacher-forced:

* ES: share of rewriting prompts with s(true) > s(new); PS the same of paraphrases; NS: share of
  neighbourhood prompts with s(true) < s(new). Ties count as failures.
* EM, PM, NM: mean of exp(-s(new)) - exp(-s(true)), in NM the other way round.
* EA, PA, NA: share of prompts where every token of the wanted answer (new; in NA the true one) was
  the most likely.
* S: harmonic mean of the means ES, PS and NS.
* ``*_sum``: the same scores from summed instead of mean log-likelihoods, which favour short answers.

Prompts of a record are averaged first, then records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modalign.editing.benchmarks.results import (
    TEACHER_FORCED,
    count_known,
    harmonic_mean,
    mean_or_nan,
    metric,
)
from modalign.editing.benchmarks.rows import Answer, Asked, EditRow, Kind, fill_rows
from modalign.editing.benchmarks.scoring import ImagePrompts, Question, Score, score
from modalign.editing.edits import Edit
from modalign.errors import DataError
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

LETTER: dict[Kind, str] = {"rewrite": "E", "paraphrase": "P", "neighbour": "N"}


@dataclass
class CounterfactScores:
    """Every prompt of every edit, scored.

    Attributes:
        asked: the prompts.
        scores: of each prompt's new and true answer.
        edits: how many edits there are.
        notes: what was left out, in words.
    """

    asked: list[Asked]
    scores: list[tuple[Score, Score]]
    edits: int
    notes: list[str] = field(default_factory=list)


def questions(edits: Sequence[Edit]) -> tuple[list[Asked], list[str]]:
    """All prompts of all edits, and what had to be left out.

    Raises:
        DataError: an edit has no truth to compare its target with.
    """
    bare = [edit.source or edit.id for edit in edits if edit.truth is None]
    if bare:
        shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        raise DataError(
            "CounterFact's scores compare the target with the truth, and there is none in "
            f"{len(bare)} of {len(edits)} edits: {shown}. Fill it in, or use --task zsre."
        )
    asked: list[Asked] = []
    unknown = same = 0
    for number, edit in enumerate(edits):
        pair = (edit.target, edit.truth or "")
        asked.append(Asked(number, "rewrite", Question(edit.prompt, pair, edit.image), edit.target))
        for prompt in edit.paraphrases:
            question = Question(prompt, pair, edit.image)
            asked.append(Asked(number, "paraphrase", question, edit.target))
        for neighbour in edit.neighbours:
            # Every neighbour of a CounterFact record has the record's true object.
            inherited = edit.truth if edit.protocol == "counterfact" else None
            answer = neighbour.answer or inherited
            if answer is None:
                unknown += 1
            elif answer == edit.target:
                same += 1
            else:
                question = Question(neighbour.prompt, (edit.target, answer))
                asked.append(Asked(number, "neighbour", question, answer))
    notes = []
    if unknown:
        notes.append(f"neighbours without an answer, not scored: {unknown}")
    if same:
        notes.append(f"neighbours whose right answer is the edit's target, not scored: {same}")
    return asked, notes


def score_counterfact(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    *,
    images: ImagePrompts | None = None,
    progress: Progress | None = None,
) -> CounterfactScores:
    """Score every prompt of every edit; the model stays as it is."""
    asked, notes = questions(edits)
    found = score(
        model, tokenizer, [one.question for one in asked], images=images, progress=progress
    )
    return CounterfactScores(asked, [(new, true) for new, true in found], len(edits), notes)


def counterfact_metrics(
    scored: CounterfactScores, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """ES, PS, NS, S and their companions with intervals over records."""
    columns = _columns(scored)
    drawn = redrawn_means(columns, resamples, seed)
    result = {}
    for ending in ("", "_sum"):
        three = [f"{letter}S{ending}" for letter in "EPN"]
        if all(count_known(columns[name]) for name in three):
            drawn[f"S{ending}"] = harmonic_mean(*(drawn[name] for name in three))
            result[f"S{ending}"] = metric(drawn[f"S{ending}"], scored.edits, TEACHER_FORCED)
    for name, values in columns.items():
        if count_known(values):
            unit = "percentage points" if name.endswith("M") else "percent"
            result[name] = metric(drawn[name], count_known(values), TEACHER_FORCED, unit)
    return result


def _columns(scored: CounterfactScores) -> dict[str, Floats]:
    """Metric -> (n,) the mean over a record's prompts, NaN where it has none of the kind."""
    cells: dict[str, list[list[float]]] = {}
    for letter in "EPN":
        for ending in ("S", "M", "A", "S_sum"):
            cells[letter + ending] = [[] for _ in range(scored.edits)]
    for one, (new, true) in zip(scored.asked, scored.scores, strict=True):
        for ending, value in _values(one.kind, new, true).items():
            cells[LETTER[one.kind] + ending][one.edit].append(value)
    return {
        name: np.array([mean_or_nan(values) for values in rows]) for name, rows in cells.items()
    }


def _values(kind: Kind, new: Score, true: Score) -> Mapping[str, float]:
    """What one prompt contributes: success, magnitude, accuracy, success by sums."""
    wanted, other = (true, new) if kind == "neighbour" else (new, true)
    return {
        "S": float(wanted.nll < other.nll),
        "M": math.exp(-wanted.nll) - math.exp(-other.nll),
        "A": float(wanted.right),
        "S_sum": float(wanted.log_probability > other.log_probability),
    }


def counterfact_rows(
    edits: Sequence[Edit],
    after: CounterfactScores,
    tokenizer: Any,
    before: CounterfactScores | None = None,
) -> list[EditRow]:
    """What was said to each prompt, for reports."""
    pairs = zip(after.asked, after.scores, strict=True)
    now = [_answer(one, scores, tokenizer) for one, scores in pairs]
    then = None
    if before is not None:
        pairs = zip(before.asked, before.scores, strict=True)
        then = [_answer(one, scores, tokenizer) for one, scores in pairs]
    return fill_rows(edits, after.asked, now, then)


def _answer(one: Asked, scores: tuple[Score, Score], tokenizer: Any) -> Answer:
    new, true = scores
    wanted = true if one.kind == "neighbour" else new
    return Answer(
        target=math.exp(-new.nll),
        truth=math.exp(-true.nll),
        success=bool(_values(one.kind, new, true)["S"]),
        accuracy=wanted.accuracy,
        says=tokenizer.decode(list(wanted.likeliest)).strip(),
    )
