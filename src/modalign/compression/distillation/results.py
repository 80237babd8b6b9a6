"""The results of a distillation: every figure of its report."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Result):
    """A model of the report.

    Attributes:
        name: the variant's, ``teacher`` or ``student before``.
        title: what it is.
        kind: trained here, or a reference row.
        parameters: of the whole model.
        nll: nats per answer token on the evaluation data; lower is better.
        accuracy: share of right greedy answers; None for plain text.
        moved: mean KL of the answers with media from those with blank ones; None without media.
        gained: accuracy with media minus with blank ones; likewise.
        samples, seconds, flops: spent by one training, mean over seeds.
    """

    name: str
    title: str
    kind: Literal["trained", "reference"]
    parameters: int
    nll: Estimate
    accuracy: Estimate | None = None
    moved: Estimate | None = None
    gained: Estimate | None = None
    samples: float | None = None
    seconds: float | None = None
    flops: float | None = None


class Distillation(_Result):
    """What ``modalign distill`` found.

    Attributes:
        teacher, student: folders, or how the student was made.
        data, evaluation: files.
        records, evaluated: numbers of records.
        budget: of every training, the teacher's passes included.
        seeds: trainings of every variant.
        rows: reference rows, then variants, in the order given.
        differences: of the first variant from each other row that is trained and from the student before:
            how many nats per token it is better.
        stages: variant -> its stages, as they ran.
        model: folder of the saved model: the first variant's first seed.
        warnings, notes: for the reader.
        command, version, device: how it was made.
    """

    teacher: str
    student: str
    data: str
    evaluation: str
    records: int
    evaluated: int
    budget: str
    seeds: int
    rows: list[Row]
    differences: list[Difference]
    stages: dict[str, list[dict]]
    model: str
    warnings: list[str]
    notes: list[str]
    command: str
    version: str
    device: str
    seconds: float
