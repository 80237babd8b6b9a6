"""The results of a merge: every figure of its report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ParentRow(_Result):
    """A parent, or the base.

    Attributes:
        name: as given.
        role: parent or base.
        folder: of the model.
        tensors: in its files.
        sha256: over the tensors that were merged; empty before.
        like: whether it gives configuration and vocabulary.
    """

    name: str
    role: Literal["parent", "base"]
    folder: str
    tensors: int
    sha256: str = ""
    like: bool = False


class Plan(_Result):
    """What a merge does, before it is done (``--dry-run``).

    Attributes:
        parents: and the base.
        method, options, weights: of the merge, complete, in words where they are rules.
        candidates: what a search tries, in words.
        merged: tensors that all parents have.
        assigned: parent -> tensors copied from it alone.
        bytes: of the weights that are written.
        notes: for the reader.
    """

    parents: list[ParentRow]
    method: str
    options: dict[str, Any]
    weights: str
    candidates: list[str]
    merged: int
    assigned: dict[str, int]
    bytes: int
    notes: list[str]


class Row(_Result):
    """A model of the report.

    Attributes:
        name: what it is called.
        kind: base, parent, merge or joint.
        chosen: whether it is the one that was saved.
        tried: the value that a search tried.
        validation: mean loss over the domains of the validation data, by which merges are chosen; None for others.
        losses: domain -> nats per token; lower is better. A domain that the model cannot read is missing.
        accuracies: domain -> share of right greedy answers; of records, not of plain text.
        mean: loss, mean over all domains; None where one is missing.
    """

    name: str
    kind: Literal["base", "parent", "merge", "joint"]
    chosen: bool = False
    tried: float | None = None
    validation: float | None = None
    losses: dict[str, Estimate] = {}
    accuracies: dict[str, Estimate] = {}
    mean: Estimate | None = None


class Compared(_Result):
    """Paired differences of the saved model from all others, on one domain or the mean."""

    domain: str
    differences: list[Difference]


class MergeResult(_Result):
    """What ``modalign merge`` found.

    Attributes:
        plan: what was done with which tensors.
        chosen: name of the merge that was saved.
        model: its folder, or the patch.
        tensors: of the saved model, counted by a clean process; of a patch, those it changes.
        coefficients: rule -> parent -> weight, of the saved merge; of ``learned``, one of every linear map.
        domains: domain -> number of records judged.
        rows: base, parents, merges, joint training.
        differences: of the saved merge, per domain: how many nats per token it is better.
        warnings, notes: for the reader.
        merging_seconds: of writing the saved merge.
        seconds: of the whole run.
        command, version: how it was made.
    """

    plan: Plan
    chosen: str
    model: str
    tensors: int
    coefficients: dict[str, dict[str, float]]
    domains: dict[str, int] = {}
    rows: list[Row] = []
    differences: list[Compared] = []
    warnings: list[str] = []
    notes: list[str] = []
    merging_seconds: float
    seconds: float
    command: str
    version: str
