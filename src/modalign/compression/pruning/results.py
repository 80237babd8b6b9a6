"""What a pruning found: every figure of its report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from modalign.compression.pruning.speed import Timing
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference

TITLES = {  # rows of the report, in order
    "parent": "parent",
    "pruned": "pruned",
    "recovered": "pruned, recovered",
    "parent recovered": "parent with the same recovery",
    "random": "pruned by chance",
    "random recovered": "pruned by chance, recovered",
    "scratch": "same size from scratch, as many steps",
}


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Result):
    """A model of the report.

    Attributes:
        name: unique.
        title: what it is.
        kind: a reference row, or what this pruning gives.
        parameters: of the whole model that are there and were not set to zero.
        bytes: of the weights' files; None for a model that is not kept.
        loss: nats per answer token (of plain text, per token) on what was held out; lower is better.
        accuracy: share of right greedy answers there; None for plain text.
        task_loss, task_accuracy: the same on the evaluation records.
        samples, seconds, flops: spent by one recovery, mean over seeds.
        timings: by batch size; empty for models of another row's shape.
    """

    name: str
    title: str
    kind: Literal["reference", "result"]
    parameters: int
    bytes: int | None = None
    loss: Estimate
    accuracy: Estimate | None = None
    task_loss: Estimate | None = None
    task_accuracy: Estimate | None = None
    samples: float | None = None
    seconds: float | None = None
    flops: float | None = None
    timings: list[Timing] = []


class Tried(_Result):
    """A candidate of the form ``auto``.

    Attributes:
        name, form, score: what it is.
        removed: what was kept of what, in words.
        saved_as: class of its folder.
        parameters: of the whole model.
        before, after: nats per token on validation data, before and after a short recovery.
        next_ratio: time for the next token over the parent's.
        refused: why it cannot be made.
        chosen: whether it became the result.
    """

    name: str
    form: str
    score: str
    removed: str = ""
    saved_as: str = ""
    parameters: int | None = None
    before: Estimate | None = None
    after: Estimate | None = None
    next_ratio: Estimate | None = None
    refused: str = ""
    chosen: bool = False


class Cutting(_Result):
    """What was cut, before any recovery; recorded, so that a run can be resumed.

    Attributes:
        form, score: of the plan.
        removed: what was kept of what, in words.
        saved_as: class of the folder.
        parameters: of the whole model: parent, pruned.
        share: of the layers' parameters that stays.
        silenced_difference: largest difference of logits from the parent with these units silenced.
        compensated: whether biases make up for removed inputs.
        candidates: what was tried.
        notes: for the report.
    """

    form: str
    score: str
    removed: str
    saved_as: str
    parameters: tuple[int, int]
    share: float
    silenced_difference: float
    compensated: bool = False
    candidates: list[Tried] = []
    notes: list[str] = []


class Pruning(_Result):
    """What ``modalign prune`` found; also ``report.json`` in the folder.

    Attributes:
        model: folder of the parent.
        part: that was pruned.
        target: in words.
        cutting: what was cut.
        recovered: full, lora or none.
        recovered_by, budget: of the recovery.
        data, evaluation: files, or the model's own samples.
        calibrated, held_out, evaluated: numbers of samples.
        seeds: recoveries of every model.
        rows: the parent, what this pruning gives, and the rows beside them.
        differences: of the result from every other row but the parent: how many nats per token it is better.
        clean_process_difference: largest difference of logits of the folder loaded by plain transformers.
        patches: files that were written, lowest first.
        options: as given, to be compared when a run is resumed.
        warnings, notes: for the reader.
        command, version, device: how it was made.
        seconds: of the whole run.
    """

    model: str
    part: str
    target: str
    cutting: Cutting
    recovered: str
    recovered_by: str
    budget: str
    data: str
    evaluation: str | None
    calibrated: int
    held_out: int
    evaluated: int
    seeds: int
    rows: list[Row]
    differences: list[Difference]
    clean_process_difference: float
    patches: list[str] = []
    options: dict[str, Any]
    warnings: list[str] = []
    notes: list[str] = []
    command: str
    version: str
    device: str
    seconds: float

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)
