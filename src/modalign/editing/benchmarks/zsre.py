"""zsRE's scores (Mitchell et al. 2022, arXiv 2110.11309; Meng et al. 2023, arXiv 2210.07229).

Each is a share of an answer's tokens that were the most likely ones, teacher-forced, averaged over a
record's prompts and then over records:

* efficacy: the new answer after the question;
* paraphrase: the new answer after the question in other words;
* specificity: the right answer after an unrelated question. An unedited model does not score 100:
  it need not know that answer.
* score: harmonic mean of the three means.

The published code appends decoded pieces of the answer to the question and tokenises that text
again; here the answer's own ids are appended, so nothing shifts where text does not round-trip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from modalign.editing.benchmarks.rows import KINDS, Answer, Asked, EditRow, Kind, fill_rows
from modalign.editing.benchmarks.scoring import ImagePrompts, Question, Score, score
from modalign.editing.edits import Edit
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

NAMES: dict[Kind, str] = {
    "rewrite": "efficacy",
    "paraphrase": "paraphrase",
    "neighbour": "specificity",
}


@dataclass
class ZsreScores:
    """Every prompt of every edit with its wanted answer, scored."""

    asked: list[Asked]
    scores: list[Score]
    edits: int
    notes: list[str] = field(default_factory=list)


def questions(edits: Sequence[Edit]) -> tuple[list[Asked], list[str]]:
    """All prompts of all edits, and what had to be left out."""
    asked: list[Asked] = []
    unknown = 0
    for number, edit in enumerate(edits):
        prompts: list[tuple[Kind, str]] = [("rewrite", edit.prompt)]
        prompts += [("paraphrase", prompt) for prompt in edit.paraphrases]
        for kind, prompt in prompts:
            question = Question(prompt, (edit.target,), edit.image)
            asked.append(Asked(number, kind, question, edit.target))
        for neighbour in edit.neighbours:
            if neighbour.answer is None:
                unknown += 1
                continue
            question = Question(neighbour.prompt, (neighbour.answer,))
            asked.append(Asked(number, "neighbour", question, neighbour.answer))
    return asked, [f"neighbours without an answer, not scored: {unknown}"] if unknown else []


def score_zsre(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    *,
    images: ImagePrompts | None = None,
    progress: Progress | None = None,
) -> ZsreScores:
    """Score every prompt of every edit; the model stays as it is."""
    asked, notes = questions(edits)
    found = score(
        model, tokenizer, [one.question for one in asked], images=images, progress=progress
    )
    return ZsreScores(asked, [one for (one,) in found], len(edits), notes)


def zsre_metrics(
    scored: ZsreScores, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Efficacy, paraphrase, specificity and their harmonic mean, with intervals over records."""
    columns = {NAMES[kind]: _column(scored, kind) for kind in KINDS}
    drawn = redrawn_means(columns, resamples, seed)
    result = {}
    if all(count_known(values) for values in columns.values()):
        drawn["score"] = harmonic_mean(*(drawn[name] for name in columns))
        result["score"] = metric(drawn["score"], scored.edits, TEACHER_FORCED)
    for name, values in columns.items():
        if count_known(values):
            result[name] = metric(drawn[name], count_known(values), TEACHER_FORCED)
    return result


def _column(scored: ZsreScores, kind: Kind) -> Floats:
    """(n,) mean token accuracy over a record's prompts of a kind, NaN where it has none."""
    cells: list[list[float]] = [[] for _ in range(scored.edits)]
    for one, found in zip(scored.asked, scored.scores, strict=True):
        if one.kind == kind:
            cells[one.edit].append(found.accuracy)
    return np.array([mean_or_nan(values) for values in cells])


def zsre_rows(
    edits: Sequence[Edit], after: ZsreScores, tokenizer: Any, before: ZsreScores | None = None
) -> list[EditRow]:
    """What was said to each prompt, for reports."""
    now = _answers(after, tokenizer)
    return fill_rows(edits, after.asked, now, _answers(before, tokenizer) if before else None)


def _answers(scored: ZsreScores, tokenizer: Any) -> list[Answer]:
    answers = []
    for one, found in zip(scored.asked, scored.scores, strict=True):
        likely = math.exp(-found.nll)
        said = tokenizer.decode(list(found.likeliest)).strip()
        about = {"truth": likely} if one.kind == "neighbour" else {"target": likely}
        answers.append(Answer(**about, accuracy=found.accuracy, says=said))
    return answers
