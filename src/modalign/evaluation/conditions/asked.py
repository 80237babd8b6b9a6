"""One model, one data file, one task, several conditions: opened, asked, kept, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.errors import UsageError
from modalign.evaluation.conditions.results import Condition, Conditions, Kind
from modalign.evaluation.guessing import blind_guess
from modalign.evaluation.kept import Kept
from modalign.evaluation.opened import Opened, outputs_of
from modalign.evaluation.tasks.base import CHANCE, MOST_FREQUENT, Output, Task, groups_of
from modalign.hashing import canonical
from modalign.numbers.bootstrap import estimate_of_sums, ratio
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.pairs import differences, resamples_for
from modalign.numbers.trainings import hierarchical_bootstrap
from modalign.patches import patches_of
from modalign.progress import Progress, within
from modalign.runs import command_line, run_folder

Tell = Callable[[int, int], None] | None
CHUNK = 64  # records changed and answered together, so that changed media never fill the memory


@dataclass(frozen=True)
class Answers:
    """A model's answers under one condition.

    Attributes:
        outputs: (n,) as the task scores them.
        counts: what happened on the way.
        texts: (n,) what else was written, kept with the answers: rationales.
    """

    outputs: Sequence[Output]
    counts: Mapping[str, int] = field(default_factory=dict)
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Way:
    """A condition before it is asked.

    Attributes:
        name: of it.
        setting: what it consists of.
        answer: answers the records.
        tokens: counts the prompt's tokens of some records; None if nothing is to be said of them.
    """

    name: str
    setting: dict[str, Any]
    answer: Callable[[Sequence[Record], Tell], Answers]
    tokens: Callable[[], Sequence[int]] | None = None


@dataclass(frozen=True)
class Run:
    """Where and how answers are kept.

    Attributes:
        out: folder; None keeps nothing.
        resume, overwrite: what becomes of a run that it holds.
        train: data that chance is made of; else what the model's folder holds.
    """

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    train: str | None = None


def changed(
    opened: Opened,
    task: Task,
    change: Callable[[Record], Record],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Callable[[Sequence[Record], Tell], Answers]:
    """Return what answers records after changing each, a few at a time."""

    def answer(records: Sequence[Record], tell: Tell) -> Answers:
        found: list[Output] = []
        for start in range(0, len(records), CHUNK):
            some = [change(record) for record in records[start : start + CHUNK]]
            found += outputs_of(opened.model, opened.reader, task, some, max_new_tokens, batch_size)
            if tell:
                tell(len(found), len(records))
        return Answers(found)

    return answer


def check_task(task: Task, what: str) -> None:
    """Refuse a task that gives questions no score of their own.

    Raises:
        UsageError: name of the task, and of what needs another.
    """
    if not task.per_question:
        raise UsageError(
            f"{what} compares questions one by one, but task {task.name} scores all of them together"
        )


def judge(
    kind: Kind,
    opened: Opened,
    task: Task,
    ways: Sequence[Way],
    pairs: Sequence[tuple[str, str]],
    run: Run,
    settings: dict[str, Any],
    notes: Sequence[str],
    progress: Progress | None,
) -> Conditions:
    """Ask every condition and compare pairs of them.

    Args:
        kind: of the conditions.
        opened: model and records.
        task: scores the answers; the measure is its questions' quality.
        ways: the conditions.
        pairs: names of conditions to compare.
        run: where answers are kept.
        settings: of the report, and of what a run is taken up with.
        notes: what the figures do not say.
        progress: told how far each condition is.
    """
    records = opened.records
    patches = [f"{each.patch.header.name} ({each.sha256})" for each in patches_of(opened.model)]
    configuration = {
        "kind": kind, "model": str(opened.folder), "data": opened.data, "task": task.name,
        **task.settings(), **settings, "patches": patches, "records": _fingerprint(records),
    }  # fmt: skip
    held = (
        run_folder(run.out, configuration, resume=run.resume, overwrite=run.overwrite)
        if run.out is not None
        else nullcontext()
    )
    values: dict[str, np.ndarray] = {}
    counts: dict[str, dict[str, int]] = {}
    with held as folder:
        if folder is not None:
            folder.begin()
        kept = Kept(folder.path / "answers" if folder is not None else None)
        for way in ways:
            name = "".join(c if c.isalnum() else "-" for c in way.name)
            tell = within(way.name, progress)
            made = kept.of(name, partial(_scored, way, task, records, tell))
            values[way.name] = np.array(made["quality"], dtype=float)
            counts[way.name] = made["counts"]
    drawn = hierarchical_bootstrap(
        {name: found[None] for name, found in values.items()},
        groups=groups_of(records),
        resamples=max(resamples_for(2), 200 * len(pairs)),
        seed=task.seed,
        fixed=list(values),
    )
    return Conditions(
        kind=kind,
        model=str(opened.folder),
        data=opened.data,
        task=task.name,
        task_version=task.version,
        measure=task.headline,
        settings={**task.settings(), **settings},
        patches=patches,
        conditions=[
            Condition(
                name=way.name,
                setting=way.setting,
                score=drawn.estimate(way.name),
                tokens=_mean(way.tokens()) if way.tokens else None,
                counts=counts[way.name],
            )
            for way in ways
        ],
        pairs=differences(drawn, list(pairs)),
        references=_references(opened, task, run.train),
        notes=[*notes, *task.notes()],
        command=command_line(),
    )


def _scored(way: Way, task: Task, records: Sequence[Record], tell: Tell) -> dict[str, Any]:
    found = way.answer(records, tell)
    scores = task.score(records, found.outputs)
    return {
        "quality": [task.quality(score) for score in scores],
        "counts": dict(found.counts),
        "answers": [
            {
                "source": str(record.source),
                "expected": record.answer,
                "answer": output.text or score.normalised,
                "score": score.value,
                **({"written": found.texts[place]} if found.texts else {}),
            }
            for place, (record, output, score) in enumerate(
                zip(records, found.outputs, scores, strict=True)
            )
        ],
    }


def _references(opened: Opened, task: Task, train: str | None) -> dict[str, Estimate]:
    records, found = opened.records, {}
    chance = task.chance(records, blind_guess(opened.folder, train)) or [None]
    known = [share for share in chance if share is not None]
    if len(known) == len(records):
        found[CHANCE] = exactly(float(np.mean(known)), len(known), over="questions")
    constant = task.constants(records).get(MOST_FREQUENT)
    if constant is not None:
        quality = [task.quality(score) for score in task.score(records, constant)]
        columns = np.array([[value, 1.0] for value in quality])
        made = estimate_of_sums(
            columns, ratio, groups=groups_of(records), seed=task.seed, unit="share"
        )
        if made is not None:
            found[MOST_FREQUENT] = made
    return found


def _mean(counts: Sequence[int]) -> Estimate | None:
    if not counts:
        return None
    columns = np.array([[float(count), 1.0] for count in counts])
    return estimate_of_sums(columns, ratio, unit="whole", over="questions")


def _fingerprint(records: Sequence[Record]) -> str:
    said = [
        [
            record.id,
            [
                [m.role, [p if isinstance(p, str) else p.content_hash() for p in m.parts]]
                for m in record.messages
            ],
        ]
        for record in records
    ]
    return hashlib.sha256(canonical(said)).hexdigest()
