"""CounterFact's and zsRE's scores, from what a model answered to every prompt of every edit.

CounterFact (Meng et al. 2022, arXiv 2202.05262; Meng et al. 2023, arXiv 2210.07229), with s(p, t) the
mean negative log-likelihood per token of answer t after prompt p, teacher-forced:

* ES: share of rewriting prompts with s(true) > s(new); PS: the same for paraphrases; NS: share of
  neighbourhood prompts with s(true) < s(new). Ties count as failures.
* EM, PM, NM: mean of exp(-s(new)) - exp(-s(true)); for NM with the sign reversed.
* EA, PA, NA: share of prompts where every token of the wanted answer (the new one; for NA the true one)
  was the most likely.
* S: harmonic mean of the means ES, PS and NS.
* ``*_sum``: the same scores from summed instead of mean log-likelihoods, which favour short answers.

zsRE (Mitchell et al. 2022, arXiv 2110.11309; Meng et al. 2023): shares of an answer's tokens that were
the most likely ones, teacher-forced.

* efficacy: the new answer after the question;
* paraphrase: the new answer after the question in other words;
* specificity: the right answer after an unrelated question. Even an unedited model need not score 100,
  as it may not know that answer.
* score: harmonic mean of the three means.

zsRE's published code appends decoded pieces of the answer to the question and tokenises the result
again; here the answer's own ids are appended, so nothing shifts where text does not survive the round trip.

Prompts are averaged within each record first, then over records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modalign.editing.benchmarks.free_generation import judge
from modalign.editing.benchmarks.results import (
    FREE,
    TEACHER_FORCED,
    count_known,
    harmonic_mean,
    means_of_records,
    metric,
)
from modalign.editing.benchmarks.rows import KINDS, Answer, EditRow, Kind, PromptRow
from modalign.editing.benchmarks.scoring import Question, Score, score
from modalign.editing.edits import Edit
from modalign.errors import DataError, UsageError
from modalign.models.asking import tokenizer_of
from modalign.numbers.bootstrap import RESAMPLES, Floats, redrawn_means
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress

Task = Literal["counterfact", "zsre"]
TASKS: tuple[Task, ...] = ("counterfact", "zsre")
HEADLINE: Mapping[Task, str] = {"counterfact": "S", "zsre": "score"}
PARTS: Mapping[Task, tuple[str, str, str]] = {  # metrics of rewrites, paraphrases and neighbours
    "counterfact": ("ES", "PS", "NS"),
    "zsre": ("efficacy", "paraphrase", "specificity"),
}


@dataclass
class EditScores:
    """Every prompt of every edit, scored.

    Attributes:
        rows: per edit, its prompts with the model's answers.
        by_sum: for CounterFact, per prompt, whether the wanted answer has the larger summed likelihood.
        notes: what was left out, in words.
    """

    rows: list[EditRow]
    by_sum: list[bool]
    notes: list[str]

    @property
    def prompts(self) -> list[PromptRow]:
        """The prompts of all edits, in order."""
        return [prompt for row in self.rows for prompt in row.prompts]


def score_edits(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    task: Task,
    *,
    progress: Progress | None = None,
) -> EditScores:
    """Score every prompt of every edit; the model is not changed.

    Raises:
        DataError: CounterFact's scores are asked for an edit without a truth.
        UsageError: an edit is about a picture.
    """
    _refuse(edits, task)
    asked: list[tuple[int, Kind, Question, str]] = []  # edit, kind, question, wanted answer
    unknown = same = 0
    for number, edit in enumerate(edits):
        truth = (edit.truth or "",) if task == "counterfact" else ()
        prompts: list[tuple[Kind, str]] = [("rewrite", edit.prompt)]
        prompts += [("paraphrase", prompt) for prompt in edit.paraphrases]
        for kind, prompt in prompts:
            asked.append((number, kind, Question(prompt, (edit.target, *truth)), edit.target))
        for neighbour in edit.neighbours:
            # Every neighbour of a CounterFact record has the record's true object.
            inherited = edit.truth if truth and edit.protocol == "counterfact" else None
            answer = neighbour.answer or inherited
            if answer is None:
                unknown += 1
            elif truth and answer == edit.target:
                same += 1
            else:
                answers = (edit.target, answer) if truth else (answer,)
                asked.append((number, "neighbour", Question(neighbour.prompt, answers), answer))
    notes = []
    if unknown:
        notes.append(f"neighbours without an answer, not scored: {unknown}")
    if same:
        notes.append(f"neighbours whose right answer is the edit's target, not scored: {same}")
    found = score(model, tokenizer, [question for _, _, question, _ in asked], progress=progress)
    rows = [EditRow.model_validate(edit, from_attributes=True) for edit in edits]
    by_sum = []
    for (number, kind, question, wanted), scores in zip(asked, found, strict=True):
        answer_row = _answer(kind, scores, tokenizer_of(tokenizer))
        row = PromptRow(kind=kind, prompt=question.prompt, wanted=wanted, after=answer_row)
        rows[number].prompts.append(row)
        if task == "counterfact":
            sums = [each.log_probability for each in scores]
            by_sum.append(sums[1] > sums[0] if kind == "neighbour" else sums[0] > sums[1])
    return EditScores(rows, by_sum, notes)


def _refuse(edits: Sequence[Edit], task: Task) -> None:
    pictured = next((edit for edit in edits if edit.image is not None), None)
    if pictured is not None:
        raise UsageError(
            f"the prompt {pictured.prompt!r} has an image, and {task} scores text only: use mmedit"
        )
    bare = [edit.source or edit.id for edit in edits if edit.truth is None]
    if bare and task == "counterfact":
        shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        raise DataError(
            "CounterFact's scores compare the target with the truth, and there is none in "
            f"{len(bare)} of {len(edits)} edits: {shown}. Fill it in, or use --task zsre."
        )


def _answer(kind: Kind, scores: Sequence[Score], tokenizer: Any) -> Answer:
    """Make the row's answer from one score (zsRE), or from the new and the true answer's (CounterFact)."""
    wanted = scores[-1 if kind == "neighbour" else 0]
    likely = [math.exp(-each.nll) for each in scores]
    said = {
        "accuracy": wanted.accuracy,
        "says": tokenizer.decode(list(wanted.likeliest)).strip(),
    }
    if len(scores) == 1:
        return Answer(**{"truth" if kind == "neighbour" else "target": likely[0]}, **said)
    other = scores[0 if kind == "neighbour" else -1]
    return Answer(target=likely[0], truth=likely[1], success=wanted.nll < other.nll, **said)


def succeeded(task: Task, answer: Answer) -> bool:
    """Return whether the wanted answer won: over the other one (CounterFact), or at every token (zsRE)."""
    return bool(answer.success) if task == "counterfact" else answer.accuracy == 1.0


def columns_of(rows: Sequence[EditRow], task: Task) -> dict[str, Floats]:
    """Return metric -> (n,) means over each record's prompts; NaN where a record has none of the kind."""
    measures = {kind: _measures(task, kind) for kind in KINDS}
    values = [
        (number, name, value)
        for number, row in enumerate(rows)
        for prompt in row.prompts
        for name, measure in measures[prompt.kind].items()
        if (value := measure(prompt)) is not None
    ]
    return means_of_records(values, len(rows), [n for each in measures.values() for n in each])


_Measure = Callable[[PromptRow], float | None]


def _measures(task: Task, kind: Kind) -> dict[str, _Measure]:
    """Return what is measured at each prompt of a kind, by metric."""
    part = PARTS[task][KINDS.index(kind)]
    found: dict[str, _Measure] = {part: _success if task == "counterfact" else _accuracy}
    if task == "counterfact":
        found |= {f"{part[0]}M": _magnitude, f"{part[0]}A": _exact}
    return found | {f"free_{kind}": _free}


def _accuracy(prompt: PromptRow) -> float | None:
    return prompt.after.accuracy


def _success(prompt: PromptRow) -> float | None:
    return float(bool(prompt.after.success))


def _magnitude(prompt: PromptRow) -> float | None:
    new, true = prompt.after.target, prompt.after.truth
    if new is None or true is None:
        return None
    return true - new if prompt.kind == "neighbour" else new - true


def _exact(prompt: PromptRow) -> float | None:
    return float(prompt.after.accuracy == 1.0)


def _free(prompt: PromptRow) -> float | None:
    said = prompt.after.generated
    return None if said is None else float(judge(said, False, prompt.wanted).prefix)


def metrics_of(
    columns: Mapping[str, Floats], task: Task, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Return every metric with its interval over records, the headline first."""
    drawn = redrawn_means(columns, resamples, seed)
    found = _headline(HEADLINE[task], drawn, columns, PARTS[task])
    for name in (*PARTS[task], *(name for name in columns if name not in PARTS[task])):
        if known := count_known(columns[name]):
            unit = "percentage points" if name in {"EM", "PM", "NM"} else "percent"
            protocol = f"{FREE}, prefix" if name.startswith("free_") else TEACHER_FORCED
            found[name] = metric(drawn[name], known, protocol, unit)
    return found


def sum_metrics(
    scored: EditScores, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Estimate CounterFact's S, ES, PS and NS from summed log-likelihoods."""
    names = dict(zip(KINDS, (f"{part}_sum" for part in PARTS["counterfact"]), strict=True))
    places = [(number, prompt) for number, row in enumerate(scored.rows) for prompt in row.prompts]
    values = [
        (number, names[prompt.kind], float(won))
        for (number, prompt), won in zip(places, scored.by_sum, strict=True)
    ]
    columns = means_of_records(values, len(scored.rows), list(names.values()))
    drawn = redrawn_means(columns, resamples, seed)
    found = _headline("S_sum", drawn, columns, list(columns))
    for name, column in columns.items():
        if known := count_known(column):
            found[name] = metric(drawn[name], known, TEACHER_FORCED)
    return found


def _headline(
    name: str, drawn: Mapping[str, Floats], columns: Mapping[str, Floats], parts: Sequence[str]
) -> dict[str, Estimate]:
    """Return the harmonic mean of the parts; nothing if one of them has no value."""
    if not all(count_known(columns[part]) for part in parts):
        return {}
    mean = harmonic_mean(*(drawn[part] for part in parts))
    return {name: metric(mean, len(columns[parts[0]]), TEACHER_FORCED)}
