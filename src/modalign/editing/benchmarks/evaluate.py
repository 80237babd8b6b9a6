"""Everything that is measured about some edits, on one model or on an edited one beside its base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from modalign.editing.benchmarks.counterfact import (
    counterfact_metrics,
    counterfact_rows,
    score_counterfact,
)
from modalign.editing.benchmarks.drift import drift
from modalign.editing.benchmarks.free_generation import generate_answers, generation_metrics
from modalign.editing.benchmarks.rows import Asked, EditRow
from modalign.editing.benchmarks.scoring import ImagePrompts
from modalign.editing.benchmarks.texts import text_metrics, write_texts
from modalign.editing.benchmarks.zsre import score_zsre, zsre_metrics, zsre_rows
from modalign.editing.edits import Edit
from modalign.errors import UsageError
from modalign.numbers.bootstrap import RESAMPLES
from modalign.numbers.estimate import Estimate
from modalign.progress import Progress
from modalign.version import __version__

Task = Literal["counterfact", "zsre"]
TASKS: tuple[Task, ...] = ("counterfact", "zsre")


class EditEvaluation(BaseModel):
    """What was found, with all that is needed to repeat it.

    Attributes:
        task: whose metrics.
        n: edits.
        metrics: of the model; with a base also its drift from it.
        before: the same of the base, the reference row; None without a base.
        chance: what answers to other questions would score, where the task says so.
        notes: what was left out, and what the numbers do not say.
        seed: of the samples and of the bootstrap.
        resamples: of the bootstrap.
        model: its name, where given.
        edits: the file's name, where given.
        patches: names of what was applied.
        harness: what measured.
        rows: every prompt of every edit; not in the JSON, written to a file of their own.
    """

    task: Task | Literal["mmedit"]
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
    rows: list[EditRow] = Field(default_factory=list, exclude=True)


@dataclass
class _Judged:
    """One model's numbers."""

    scored: Any  # CounterfactScores or ZsreScores
    metrics: dict[str, Estimate]
    said: list[str | None]

    @property
    def asked(self) -> list[Asked]:
        asked: list[Asked] = self.scored.asked
        return asked


def evaluate_edits(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    task: Task,
    *,
    base: Any = None,
    text: Iterable[str] | None = None,
    generate: bool = True,
    images: ImagePrompts | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> EditEvaluation:
    """Measure edits on a model, which stays as it is.

    Args:
        model: edited or not: anything called like a transformers causal LM.
        tokenizer: the model's.
        edits: what was to be changed, and what was not.
        task: whose metrics: ``counterfact`` or ``zsre``.
        base: the model before the edits, for the reference row and the drift; it may share weights.
        text: held-out documents for drift (with a base) and perplexity.
        generate: also generate freely, and write texts where edits have generation prompts.
        images: how prompts about pictures become inputs, where edits have any.
        seed: of the written texts and of the bootstrap.
        resamples: of the bootstrap.
        progress: told how far each step is.

    Raises:
        DataError: the edits cannot be scored by this task, or the text is too short.
        UsageError: an unknown task, no edits, or pictures without ``images``.
    """
    if task not in TASKS:
        raise UsageError(f"no task {task!r}: choose from {', '.join(TASKS)}")
    if not edits:
        raise UsageError("there are no edits to evaluate")
    judge = _Judge(tokenizer, edits, task, generate, images, seed, resamples)
    then = judge(base, _prefixed(progress, "before")) if base is not None else None
    now = judge(model, _prefixed(progress, "after") if then else progress)
    if text is not None:
        settings: dict[str, Any] = {"resamples": resamples, "seed": seed, "progress": progress}
        now.metrics |= drift(model, tokenizer, text, base=base, **settings)
    make_rows: Any = counterfact_rows if task == "counterfact" else zsre_rows
    rows = make_rows(edits, now.scored, tokenizer, then.scored if then else None)
    _add_said(rows, now, then)
    return EditEvaluation(
        task=task,
        n=len(edits),
        metrics=now.metrics,
        before=then.metrics if then else None,
        notes=_notes(edits, now, task, generate) + _known(then),
        seed=seed,
        resamples=resamples,
        rows=rows,
    )


@dataclass
class _Judge:
    tokenizer: Any
    edits: Sequence[Edit]
    task: Task
    generate: bool
    images: ImagePrompts | None
    seed: int
    resamples: int

    def __call__(self, model: Any, progress: Progress | None) -> _Judged:
        """Score, generate and write with one model."""
        drawing: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed}
        scored: Any
        if self.task == "counterfact":
            scored = score_counterfact(
                model, self.tokenizer, self.edits, images=self.images, progress=progress
            )
            metrics = counterfact_metrics(scored, **drawing)
        else:
            scored = score_zsre(
                model, self.tokenizer, self.edits, images=self.images, progress=progress
            )
            metrics = zsre_metrics(scored, **drawing)
        if not self.generate:
            return _Judged(scored, metrics, [None] * len(scored.asked))
        said = generate_answers(model, self.tokenizer, scored.asked, progress=progress)
        metrics |= generation_metrics(scored.asked, said, len(self.edits), **drawing)
        if any(edit.generation_prompts for edit in self.edits):
            texts = write_texts(
                model, self.tokenizer, self.edits, seed=self.seed, progress=progress
            )
            metrics |= text_metrics(self.edits, texts, **drawing)
        return _Judged(scored, metrics, [one.text if one else None for one in said])


def _prefixed(progress: Progress | None, when: str) -> Progress | None:
    if progress is None:
        return None
    return lambda name, done, total: progress(f"{when}: {name}", done, total)


def _add_said(rows: Sequence[EditRow], now: _Judged, then: _Judged | None) -> None:
    """Put the continuations into the rows, which hold the prompts in the order asked."""
    places = [0] * len(rows)
    for number, one in enumerate(now.asked):
        row = rows[one.edit].prompts[places[one.edit]]
        places[one.edit] += 1
        row.after.generated = now.said[number]
        if then is not None and row.before is not None:
            row.before.generated = then.said[number]


def _notes(edits: Sequence[Edit], now: _Judged, task: Task, generate: bool) -> list[str]:
    notes = list(now.scored.notes)
    kinds = {"paraphrases": "PS", "neighbours": "NS"}
    if task == "zsre":
        kinds = {"paraphrases": "paraphrase", "neighbours": "specificity"}
    most = {kind: max(len(getattr(edit, kind)) for edit in edits) for kind in kinds}
    for kind, name in kinds.items():
        if name not in now.metrics:
            total = "S" if task == "counterfact" else "score"
            notes.append(f"no {kind} that can be scored: no {name}, and so no {total}")
    if task == "counterfact" and most["paraphrases"] == most["neighbours"] == 1:
        notes.append(
            "one paraphrase and one neighbour per edit (CounterFact as published has two and ten): "
            "PS and NS of a record are 0 or 100"
        )
    if generate and any(edit.image for edit in edits):
        notes.append("free generation leaves out prompts about pictures")
    if len(edits) < 30:
        notes.append(f"{len(edits)} edits only: intervals by bootstrap are too narrow")
    return notes


def _known(then: _Judged | None) -> list[str]:
    """How many targets the base says already: edits that change nothing."""
    if then is None:
        return []
    known = 0
    for one, found in zip(then.asked, then.scored.scores, strict=True):
        new = found[0] if isinstance(found, tuple) else found
        known += one.kind == "rewrite" and new.right
    return [f"the model says {known} of the targets before any edit"] if known else []
