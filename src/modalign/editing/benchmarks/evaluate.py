"""Measure everything about some edits, on one model or on an edited model and its base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from modalign.editing.benchmarks.drift import drift
from modalign.editing.benchmarks.free_generation import Said, exact_metrics, generate_answers
from modalign.editing.benchmarks.rows import EditRow, PromptRow
from modalign.editing.benchmarks.scores import (
    HEADLINE,
    PARTS,
    TASKS,
    EditScores,
    Task,
    columns_of,
    metrics_of,
    score_edits,
    sum_metrics,
)
from modalign.editing.benchmarks.texts import text_metrics, write_texts
from modalign.editing.edits import Edit
from modalign.editing.engine.asking import Asking
from modalign.errors import UsageError, choose
from modalign.models.asking import tokenizer_of
from modalign.numbers.bootstrap import RESAMPLES
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress
from modalign.version import __version__


class EditEvaluation(BaseModel):
    """The results, with everything needed to repeat the evaluation.

    Attributes:
        task: the benchmark whose metrics these are.
        form: ``plain`` if prompts were asked as they stand, ``chat`` if in the chat template.
        n: number of edits.
        metrics: of the model; with a base, also its drift from the base.
        before: the base's metrics, as the reference row; None without a base.
        chance: what answers to other questions would score, where the task defines it.
        notes: what was left out, and what the numbers do not show.
        seed: of the samples and of the bootstrap.
        resamples: number of bootstrap resamples.
        model: its name, where given.
        edits: the file's name, where given.
        patches: names of the patches that were applied.
        harness: the code that measured.
        in_chat: the evaluation in the chat form, where both forms were asked for.
        rows: every prompt of every edit; not in the JSON, written to a file of their own.
    """

    task: Task | Literal["mmedit"]
    form: Literal["plain", "chat"] = "plain"
    n: int
    metrics: dict[str, Estimate]
    before: dict[str, Estimate] | None = None
    chance: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    seed: int = 0
    resamples: int = RESAMPLES
    model: str = ""
    edits: str = ""
    patches: list[str] = Field(default_factory=list)
    harness: str = f"modalign {__version__}"
    in_chat: EditEvaluation | None = None
    rows: list[EditRow] = Field(default_factory=list, exclude=True)


def evaluate_edits(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    task: Task,
    *,
    base: Any = None,
    text: Iterable[str] | None = None,
    generate: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> EditEvaluation:
    """Measure edits on a model, which is not changed.

    Args:
        model: edited or unedited; anything called like a transformers causal LM.
        tokenizer: the model's, or an :class:`Asking` for the form in which it is asked.
        edits: what should have changed, and what should not.
        task: the benchmark whose metrics to use: ``counterfact`` or ``zsre``.
        base: the model before the edits, for the reference row and the drift; it may share weights.
        text: held-out documents for drift (with a base) and perplexity.
        generate: also generate freely, and write texts for edits that have generation prompts.
        seed: of the written texts and of the bootstrap.
        resamples: number of bootstrap resamples.
        progress: told how far each step is.

    Raises:
        DataError: the edits cannot be scored by this task, or the text is too short.
        UsageError: an unknown task, no edits, or edits about pictures.
    """
    if task not in TASKS:
        raise UsageError(f"no task {task!r}: {choose(task, TASKS)}")
    if not edits:
        raise UsageError("there are no edits to evaluate")
    drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}

    def judge(model: Any, progress: Progress | None) -> _Judged:
        """Score, generate and write with one model."""
        found = score_edits(model, tokenizer, edits, task, progress=progress)
        said: list[Said] = []
        if generate:
            said = generate_answers(model, tokenizer, found.prompts, progress=progress)
            for prompt, one in zip(found.prompts, said, strict=True):
                prompt.after.generated = one.text
        metrics = metrics_of(columns_of(found.rows, task), task, **drawing)
        if task == "counterfact":
            metrics |= sum_metrics(found, **drawing)
        if generate:
            metrics |= exact_metrics(found.rows, said, **drawing)
        if generate and any(edit.generation_prompts for edit in edits):
            texts = write_texts(model, tokenizer, edits, seed=seed, progress=progress)
            metrics |= text_metrics(edits, texts, **drawing)
        return _Judged(found, metrics)

    then = judge(base, _prefixed(progress, "before")) if base is not None else None
    now = judge(model, _prefixed(progress, "after") if then else progress)
    if text is not None:
        now.metrics |= drift(
            model, tokenizer_of(tokenizer), text, base=base, progress=progress, **drawing
        )
    notes = _notes(edits, now, task)
    if then is not None:
        for prompt, former in zip(now.scores.prompts, then.scores.prompts, strict=True):
            prompt.before = former.after
        notes += _known(then.scores.prompts)
    return EditEvaluation(
        task=task,
        form=Asking.of(tokenizer).template,
        n=len(edits),
        metrics=now.metrics,
        before=then.metrics if then else None,
        notes=notes,
        seed=seed,
        resamples=resamples,
        rows=now.scores.rows,
    )


@dataclass
class _Judged:
    """One model's answers and metrics."""

    scores: EditScores
    metrics: dict[str, Estimate]


def _prefixed(progress: Progress | None, when: str) -> Progress | None:
    if progress is None:
        return None
    return lambda name, done, total: progress(f"{when}: {name}", done, total)


def _notes(edits: Sequence[Edit], now: _Judged, task: Task) -> list[str]:
    notes = list(now.scores.notes)
    for kind, name in zip(("paraphrases", "neighbours"), PARTS[task][1:], strict=True):
        if name not in now.metrics:
            notes.append(f"no {kind} that can be scored: no {name}, and so no {HEADLINE[task]}")
    most = {
        max(len(getattr(edit, kind)) for edit in edits) for kind in ("paraphrases", "neighbours")
    }
    if task == "counterfact" and most == {1}:
        notes.append(
            "one paraphrase and one neighbour per edit (CounterFact as published has two and ten): "
            "PS and NS of a record are 0 or 100"
        )
    if len(edits) < 30:
        notes.append(f"{len(edits)} edits only: intervals by bootstrap are too narrow")
    return notes


def _known(before: Sequence[PromptRow]) -> list[str]:
    """Note how many targets the base says already; these edits change nothing."""
    known = sum(each.kind == "rewrite" and each.after.accuracy == 1.0 for each in before)
    return [f"the model says {known} of the targets before any edit"] if known else []
