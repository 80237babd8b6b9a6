"""From trainings to the report: estimates over records and seeds, paired differences, tables, words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from modalign.compression.distillation.bench import BEFORE, TEACHER, Bench
from modalign.compression.distillation.judging import Judged
from modalign.compression.distillation.results import Distillation, Row
from modalign.compression.distillation.schedules import Variant
from modalign.data.supervision import Sample
from modalign.numbers import words
from modalign.numbers.bootstrap import Groups
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE, Difference, differences, resamples_for
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.pages.parts import Part, Quantity, Section, Table, Words, tabulate, text_rows
from modalign.pages.report import Report
from modalign.runs import command_line
from modalign.version import __version__

NATS = "nats per token"
Of = Callable[[Judged], Any]


def _verdict(found: Difference) -> str:
    better = {"first": found.first, "second": found.second}.get(found.verdict)
    return NO_DIFFERENCE if better is None else f"{better} is better"


ROWS = (
    Quantity("model", "title"),
    Quantity("parameters", "parameters", "count"),
    Quantity(
        "nats per answer token",
        "nll",
        meaning="loss on the evaluation data; lower is better",
        drawn=True,
    ),
    Quantity(
        "right answers", "accuracy", meaning="the greedy answer equals the reference", drawn=True
    ),
    Quantity(
        "moved by blank media",
        "moved",
        meaning="divergence, in nats per token, of the answers with the media from those with blank ones",
    ),
    Quantity(
        "gained by media",
        "gained",
        meaning="right answers with the media minus those with blank ones, in percentage points",
    ),
    Quantity("records seen", "samples", "whole"),
    Quantity(
        "seconds", "seconds", "seconds", meaning="of one training, the teacher's passes included"
    ),
    Quantity("FLOPs", "flops", "flops", meaning="of one training, the teacher's passes included"),
)
DIFFERENCES = (
    Quantity("against", "second"),
    Quantity(
        "better by, in nats per token",
        "difference",
        meaning="loss of the other minus that of the first schedule, paired by record",
    ),
    Quantity(
        "p", lambda found: words.p_value(found.p_holm), meaning="corrected for the number of rows"
    ),
    Quantity("verdict", _verdict),
)


def assemble(
    bench: Bench,
    variants: Sequence[Variant],
    trained: Mapping[str, Sequence[Any]],
    seconds: float,
) -> Distillation:
    """Return the results of all trainings.

    Args:
        bench: what they share.
        variants: in order; the first is the saved model's.
        trained: variant -> its trainings, seed by seed.
        seconds: that the run took.
    """
    judged = {name: [known.judged] for name, known in bench.references.items()}
    judged |= {name: [each.judged for each in found] for name, found in trained.items()}
    groups = groups_of(bench.evaluation)
    looked = groups_of([s for s in bench.evaluation if s.media][: len(judged[BEFORE][0].moved)])
    nll = _means(judged, lambda one: one.nll, groups, NATS)
    figures = {"nll": nll}
    if not bench.text:
        figures["accuracy"] = _means(judged, lambda one: one.correct, groups, "share")
    if looked:
        figures["moved"] = _means(judged, lambda one: one.moved, looked, NATS)
        figures["gained"] = _means(judged, lambda one: one.gained, looked, "difference of shares")
    titles = {name: name for name in bench.references} | {v.name: v.title for v in variants}
    rows = [
        Row(
            name=name,
            title=title,
            kind="trained" if name in trained else "reference",
            parameters=bench.references[TEACHER if name == TEACHER else BEFORE].parameters,
            **{figure: found.get(name) for figure, found in figures.items()},
            **_costs(trained.get(name, ())),
        )
        for name, title in titles.items()
    ]
    config = bench.config
    return Distillation(
        teacher=config.teacher,
        student=_student(bench),
        data=config.data,
        evaluation=config.evaluation or "a fixed tenth of the data, media never on both sides",
        records=len(bench.train),
        evaluated=len(bench.evaluation),
        budget=config.budget,
        seeds=config.seeds,
        rows=rows,
        differences=_differences(judged, variants, groups),
        stages={name: found[0].stages for name, found in trained.items()},
        model=str(bench.out / "model"),
        warnings=bench.warnings,
        notes=bench.notes,
        command=command_line(),
        version=__version__,
        device=str(bench.device),
        seconds=seconds,
    )


def groups_of(samples: Sequence[Sample]) -> Groups:
    """Return labels that keep records about the same media, or of one group, together."""
    known: dict[Any, str] = {}
    keys = (sample.media or sample.record.group for sample in samples)
    return [None if key is None else known.setdefault(key, str(len(known))) for key in keys]


def _means(
    judged: Mapping[str, Sequence[Judged]], of: Of, groups: Groups, unit: str
) -> dict[str, Estimate]:
    """Return every model's mean; models that lack the figure have none."""
    arrays = {
        name: np.array([np.asarray(of(one), dtype=float) for one in found])
        for name, found in judged.items()
        if all(len(of(one)) == len(groups) for one in found)
    }
    return estimate_means(arrays, groups=groups, fixed=(TEACHER, BEFORE), unit=unit)


def _costs(trained: Sequence[Any]) -> dict[str, float]:
    if not trained:
        return {}
    names = ("samples", "seconds", "flops")
    return {name: float(np.mean([getattr(each, name) for each in trained])) for name in names}


def _differences(
    judged: Mapping[str, Sequence[Judged]], variants: Sequence[Variant], groups: Groups
) -> list[Difference]:
    """Compare the first variant with all others and with the student before; more is better."""
    first, *others = [variant.name for variant in variants]
    gains = {
        name: -np.array([one.nll for one in found])
        for name, found in judged.items()
        if name != TEACHER
    }
    enough = resamples_for(len(gains))
    drawn = hierarchical_bootstrap(gains, groups=groups, resamples=enough, fixed=(BEFORE,))
    pairs = [(first, name) for name in (*others, BEFORE)]
    return differences(drawn, pairs, unit=NATS)


def _student(bench: Bench) -> str:
    made = [
        f"{len(bench.plan.layers)} layers kept" if bench.plan.layers else "",
        f"a new connector {bench.plan.connector}" if bench.plan.connector else "",
    ]
    how = ", ".join(filter(None, made))
    name = bench.plan.folder or f"made from {bench.config.teacher}"
    return f"{name} ({how})" if how else name


# ---------------------------------------------------------------------- the page


def report_of(found: Distillation) -> Report:
    """Return the report of a distillation."""
    parts: list[Part] = [rows_table(found)]
    if warned := found.warnings:
        parts.insert(0, Words("warnings", "warnings", "/warnings", warned, "list"))
    stages = Table(
        "stages",
        "the stages as they ran",
        "/stages",
        headings=("schedule", "stage", "trains", "objective"),
        rows=text_rows(_stage_rows(found)),
    )
    sections = [
        Section("models", "The student beside its teacher", _lead(found), parts),
        Section(
            "differences",
            "Is the first schedule better?",
            "A difference is found if its corrected p-value is below 5 % and its interval excludes zero.",
            [differences_table(found)],
        ),
        Section("how", "How it was made", "", [stages, *_notes(found)]),
    ]
    foot = (
        f"modalign {found.version}; {found.command}; {found.device}; {words.seconds(found.seconds)}. Intervals "
        "are 95 %, over records and, with two seeds or more, over trainings."
    )
    lead = f"{found.teacher} into {found.student}, on {found.data}"
    return Report("Distillation", lead, sections, foot, found)


def rows_table(found: Distillation) -> Table:
    """Return the table of all models."""
    first = next(row.name for row in found.rows if row.kind == "trained")
    return tabulate(
        ("rows", f"on {found.evaluated:,} evaluation records", "/rows"),
        ROWS,
        found.rows,
        tone=lambda row: (
            "reference" if row.kind == "reference" else "chosen" if row.name == first else ""
        ),
    )


def differences_table(found: Distillation) -> Table:
    """Return the table of paired differences."""
    first = next(row.title for row in found.rows if row.kind == "trained")
    caption = f"{first}, compared"
    return tabulate(("differences", caption, "/differences"), DIFFERENCES, found.differences)


def _lead(found: Distillation) -> str:
    again = f"{found.seeds} trainings" if found.seeds > 1 else "one training"
    return (
        f"Every schedule had a budget of {found.budget} on {found.records:,} records, with {again} each. "
        f"Evaluation data: {found.evaluation}. The saved model is that of the first schedule and seed."
    )


def _stage_rows(found: Distillation) -> list[tuple[str, str, str, str]]:
    return [
        (name, stage.get("name", "train"), _trains(stage), _objective(stage.get("objective", {})))
        for name, stage in chain.from_iterable(
            ((name, stage) for stage in stages) for name, stages in found.stages.items()
        )
    ]


def _trains(stage: Mapping[str, Any]) -> str:
    return "connector" if stage.get("llm") == "frozen" else "connector and language model"


def _objective(objective: Mapping[str, Any]) -> str:
    return (
        " + ".join(
            name if setting == 1 else f"{name} {setting}" for name, setting in objective.items()
        )
        or "cross_entropy"
    )


def _notes(found: Distillation) -> list[Part]:
    return [Words("notes", "notes", "/notes", found.notes, "note")] if found.notes else []
