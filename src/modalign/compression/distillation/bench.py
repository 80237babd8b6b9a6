"""What the trainings of one distillation share: checked models, data, and the rows they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.judging import NOTHING, Judged, judge
from modalign.compression.distillation.students import StudentPlan, plan_layers
from modalign.data.corpus import is_corpus
from modalign.data.readers import read_records
from modalign.data.splits import leakage, split_validation
from modalign.data.supervision import Sample
from modalign.devices import device_named
from modalign.errors import DataError, UsageError
from modalign.files import write_atomically
from modalign.models.saved import OpenedModel, open_composed
from modalign.models.tool_text import ToolReader
from modalign.progress import Progress
from modalign.runs import read_result
from modalign.training.references import StoredReference, check_vocabulary
from modalign.training.stored import Store, StoreHeader, is_store
from modalign.training.tuning import read_samples

TEACHER, BEFORE = "teacher", "student before"


class Known(BaseModel):
    """A model as it stands before any training: its size, and how it is judged."""

    parameters: int
    judged: Judged


@dataclass
class Bench:
    """Everything that the trainings of one run share.

    Attributes:
        config: what was asked for.
        out: folder of the run.
        plan: how the student comes about.
        train, evaluation: samples.
        text: whether they are windows of plain text.
        media: whether the student takes media.
        device: where it trains.
        references: the teacher and the student before, by name.
        warnings, notes: for the report.
    """

    config: DistillConfig
    out: Path
    plan: StudentPlan
    train: Sequence[Sample]
    evaluation: Sequence[Sample]
    text: bool
    media: bool
    device: torch.device
    progress: Progress | None
    references: dict[str, Known] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(config: DistillConfig, out: Path, progress: Progress | None) -> Bench:
    """Open and check models and data; nothing is written.

    Raises:
        UsageError: the models do not fit each other, or the student cannot be made.
        DataError: data that cannot be used.
    """
    device = device_named(config.training.device)
    plan = StudentPlan(config.teacher, config.student, (), config.student_connector)
    if not (config.student or config.student_layers or config.student_connector):
        raise UsageError(
            "there is no student: name its folder with --student, or have it made from the teacher with "
            "--student-layers or --student-connector"
        )
    stored = Path(config.teacher) if is_store(config.teacher) else None
    if stored and not config.student:
        raise UsageError(
            f"{config.teacher} is a stored teacher, from which no student can be made: name the "
            "student's folder with --student"
        )
    whole = plan.make(config.seed)
    check_vocabulary(TEACHER, config.teacher, whole.tokenizer)
    train, evaluation, warnings = _data(config, whole, progress)
    if config.student_layers:
        plan = _cut(config, plan, whole, train)
    del whole
    student = plan.make(config.seed)
    bench = Bench(
        config,
        out,
        plan,
        train,
        evaluation,
        text=is_corpus(Path(config.data)),
        media=bool(student.encoders),
        device=device,
        progress=progress,
        warnings=warnings,
    )
    if stored:
        header = _stored(bench, stored, student.tokenizer)
        _check(bench, student, header.parameters)
    else:
        teacher = open_composed(config.teacher, "the teacher")
        pictured = any(sample.media for sample in (*train, *evaluation))
        if pictured and not teacher.encoders:
            raise DataError(f"the records hold media, but the teacher {teacher.name} takes none")
        _check(bench, student, _parameters(teacher))
    return bench


def judge_references(bench: Bench) -> None:
    """Judge the teacher and the student as they are, and warn of a teacher that does not look at its media."""
    folder = bench.config.teacher
    if is_store(folder):
        moved = Store(Path(folder)).header.moved
    else:
        teacher = open_composed(folder, "the teacher")
        bench.references[TEACHER] = _known(bench, TEACHER, teacher)
        moved = bench.references[TEACHER].judged.moved
    bench.references[BEFORE] = _known(bench, BEFORE, bench.plan.make(bench.config.seed))
    if moved and max(moved) < NOTHING:
        bench.warnings.append(
            "The teacher does not look: blank media in place of the right ones move its answers by "
            f"{max(moved):.1e} nats at most, over {len(moved)} records. A student learns nothing about media "
            "from it."
        )


def _stored(bench: Bench, folder: Path, tokenizer: PreTrainedTokenizerBase) -> StoreHeader:
    """Return what a stored teacher is of, if it holds all training records."""
    reference = StoredReference(TEACHER, str(folder), tokenizer)
    found = reference.store.header
    if lacking := reference.lacking(bench.train):
        raise UsageError(
            f"{folder} holds {found.records:,} records, but not {len(lacking):,} of the {len(bench.train):,} to "
            f"train on, {lacking[0].record.source} among them: it was made from other data. Store it again: "
            f"modalign distill store {found.teacher} {bench.config.data} -o FOLDER"
        )
    bench.notes.append(
        f"The teacher is stored: its {found.top} most likely words of every position, at temperature "
        f"{found.temperature:g}. It was {found.teacher} (weights {found.sha256[:12]})."
    )
    return found


def _data(
    config: DistillConfig, opened: OpenedModel, progress: Progress | None
) -> tuple[list[Sample], list[Sample], list[str]]:
    """Return training and evaluation samples, and warnings about them."""
    takes_none = not opened.encoders and not isinstance(opened.reader, ToolReader)
    if takes_none and not is_corpus(Path(config.data)):
        pictured = next(
            (r for r in read_records(config.data).records if any(True for _ in r.media())), None
        )
        if pictured is not None:
            raise DataError(
                f"{pictured.source} holds media, but the student {opened.name} takes none: "
                "--student-connector mlp gives it the teacher's encoder and a new connector"
            )
    samples = read_samples(Path(config.data), opened, length=config.length, progress=progress)
    if config.evaluation is None:
        _, held = split_validation([sample.record for sample in samples])
        ids = {record.id for record in held}
        train = [sample for sample in samples if sample.record.id not in ids]
        return train, [sample for sample in samples if sample.record.id in ids], []
    evaluation = read_samples(
        Path(config.evaluation), opened, length=config.length, progress=progress
    )
    leaks = leakage([s.record for s in samples], [s.record for s in evaluation])
    if not leaks:
        return samples, evaluation, []
    return (
        samples,
        evaluation,
        [
            f"{len(leaks)} media are in the training and in the evaluation data, {leaks[0].train} and "
            f"{leaks[0].evaluation} among them."
        ],
    )


def _cut(
    config: DistillConfig, plan: StudentPlan, whole: OpenedModel, train: Sequence[Sample]
) -> StudentPlan:
    """Return the plan with the layers that the student keeps."""
    assert config.student_layers is not None
    kept = plan_layers(whole, config.student_layers, config.layers_by, train)
    return StudentPlan(plan.teacher, plan.folder, tuple(kept), plan.connector)


def _check(bench: Bench, student: OpenedModel, teacher: int) -> None:
    """Note what is unusual; ``teacher`` is its number of parameters."""
    if bench.plan.layers:
        bench.notes.append(
            f"The student keeps the layers {', '.join(map(str, bench.plan.layers))} of {student.name}."
        )
    if (own := _parameters(student)) > teacher:
        bench.warnings.append(
            f"The student ({own:,} parameters) is larger than its teacher ({teacher:,})."
        )


def _known(bench: Bench, name: str, opened: OpenedModel) -> Known:
    """Judge a model as it is, once for all attempts at this run."""
    file = bench.out / "judged" / f"{name.replace(' ', '_')}.json"
    if (found := read_result(file, Known)) is not None:
        return found
    if bench.progress:
        bench.progress(f"judging the {name}", 0, 1)
    found = Known(
        parameters=_parameters(opened), judged=judge(opened, bench.evaluation, bench.device)
    )
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, found.model_dump_json())
    return found


def _parameters(opened: OpenedModel) -> int:
    return sum(parameter.numel() for parameter in opened.model.parameters())
