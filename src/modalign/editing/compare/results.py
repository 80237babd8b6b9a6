"""The results of a comparison of editing methods: cells as kept on disk, and the whole report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from modalign.editing.benchmarks.rows import Answer, EditRow, Kind
from modalign.editing.benchmarks.scores import Task
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Verdict

SCHEMA_VERSION = 1

Mode = Literal["batch", "sequential"]
MODES: tuple[Mode, ...] = ("batch", "sequential")
Status = Literal["done", "not reached", "not written", "overwritten", "not generalised"]


class Outcome(BaseModel):
    """How one edit of a cell went.

    Attributes:
        row: its prompts and what the edited model said to them.
        value: probability of the target with the optimised value, on the rewriting prompts; None
            if the method optimises none.
        written: probability of the target after the bare prompt once the patch was applied.
        steps: evaluations of the value's optimisation.
        at_step: in sequential mode, whether the rewrite succeeded right after its own step.
        status: ``done``, or where it failed.
        reason: the status in words.
        warnings: the method's own.
    """

    row: EditRow
    value: float | None = None
    written: float | None = None
    steps: int | None = None
    at_step: bool | None = None
    status: Status = "done"
    reason: str = ""
    warnings: list[str] = Field(default_factory=list)


class CellResult(BaseModel):
    """One method on one draw of edits, in one mode.

    Attributes:
        fingerprint: hash of everything that determines the result; a cell with another one is run again.
        method, mode, size, draw: which cell.
        steps: number of patches, each computed on top of the one before; 1 in batch mode.
        failure: why there is no result.
        traceback: of an unforeseen failure.
        outcomes: the edits.
        measured: metrics that are not means over edits: drift, fluency, consistency.
        seconds: stage -> seconds spent on the patches.
        evaluation_seconds: of scoring; not charged to the method.
        values_new, values_found: values optimised here, and taken from the store.
        peak_memory: bytes while the patches were computed; None where it cannot be measured.
        layers: parameter -> |Delta| / |W|, over all steps together.
        notes: what the method said.
        patches: content hashes, lowest first.
    """

    fingerprint: str
    method: str
    mode: Mode
    size: int
    draw: int
    steps: int = 1
    failure: str | None = None
    traceback: str | None = None
    outcomes: list[Outcome] = Field(default_factory=list)
    measured: dict[str, Estimate] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    evaluation_seconds: float = 0.0
    values_new: int = 0
    values_found: int = 0
    peak_memory: int | None = None
    layers: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    patches: list[str] = Field(default_factory=list)


class MethodPoint(BaseModel):
    """One method at one number of edits in one mode, over all its cells.

    Attributes:
        method, mode, size: which.
        computed_as: the mode its cells were run in, where both modes are the same computation.
        draws: number of draws with a result; ``failed_draws`` counts those without.
        n: number of edits that the scores are over, over all draws.
        metrics: scores over edits, and what was measured per draw.
        statuses: status -> number of edits.
        layers: parameter -> mean |Delta| / |W|.
    """

    method: str
    mode: Mode
    size: int
    computed_as: Mode
    draws: int
    failed_draws: int
    n: int
    metrics: dict[str, Estimate]
    statuses: dict[str, int]
    layers: dict[str, float]


class EditingCost(BaseModel):
    """What a method cost, over all its cells of one mode.

    Attributes:
        statistics_seconds: taking C0, once; ``statistics_of`` names the method that took it first.
        value_seconds: per edit, over the ``values`` that were optimised (not taken from the store);
            ``values_of`` names the method whose identical values were taken from the store.
        write_seconds: per edit at the largest size: reading keys, solving, writing; for fine-tuning, all of it.
        write_size: that size.
        evaluation_seconds: of all cells, not charged to the method.
        peak_memory: bytes; None where it cannot be measured.
        stages: stage -> seconds of all cells.
    """

    method: str
    mode: Mode
    statistics_seconds: float
    value_seconds: float | None
    values: int
    values_of: str | None = None
    statistics_of: str | None = None
    write_seconds: float | None
    write_size: int
    evaluation_seconds: float
    peak_memory: int | None
    stages: dict[str, float]


class Reference(BaseModel):
    """A reference row: the unedited model, or a coin toss."""

    name: str
    size: int | None
    metrics: dict[str, Estimate]


class ScoreDifference(BaseModel):
    """Two methods on the same edits; the first minus the second, in percentage points.

    Attributes:
        metric: the headline score or one of its parts.
        value, low, high, n: the difference with its 95 % interval over edits.
        p_value, p_holm: two-sided by bootstrap; corrected over the pairs of this size and mode.
        verdict: ``first``, ``second`` or ``no difference found``.
    """

    mode: Mode
    size: int
    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    n: int
    p_value: float
    p_holm: float
    verdict: Verdict


class TableAnswer(BaseModel):
    """One method's outcome for one edit of the table, with its answers in the order of the prompts."""

    method: str
    mode: Mode
    status: Status
    reason: str
    answers: list[Answer]


class TablePrompt(BaseModel):
    """One prompt of an edit, and what the unedited model says."""

    kind: Kind
    prompt: str
    wanted: str
    before: Answer


class TableRow(BaseModel):
    """One edit before and after, by every method."""

    id: str
    subject: str
    target: str
    truth: str | None
    prompts: list[TablePrompt]
    after: list[TableAnswer]


class WorstNeighbour(BaseModel):
    """A question that no edit was about and whose right answer lost most probability."""

    method: str
    mode: Mode
    size: int
    edit: str
    prompt: str
    wanted: str
    before: float
    after: float
    says: str


class FailedCell(BaseModel):
    """A cell without a result."""

    method: str
    mode: Mode
    size: int
    draw: int
    failure: str


class MethodInfo(BaseModel):
    """A method as it was run."""

    name: str
    title: str
    layers: list[int]
    settings: dict[str, Any]


class ComparisonSetting(BaseModel):
    """How the comparison was run: everything needed to run it again."""

    command: str
    started: str
    finished: str
    seconds: float
    device: str
    dtype: str
    threads: int
    seed: int
    block: int | None
    resamples: int
    text: str | None
    held_out: str | None
    generate: bool
    hashes: dict[str, str]
    versions: dict[str, str]


class EditComparison(BaseModel):
    """The report."""

    schema_version: int = SCHEMA_VERSION
    model: str
    edits: str
    task: Task
    available: int
    sizes: list[int]
    modes: list[Mode]
    headline: str
    parts: list[str]
    methods: list[MethodInfo]
    points: list[MethodPoint]
    references: list[Reference]
    differences: list[ScoreDifference]
    costs: list[EditingCost]
    table_size: int | None
    table: list[TableRow]
    worst: list[WorstNeighbour]
    failures: list[FailedCell]
    notes: list[str]
    setting: ComparisonSetting

    def point(self, method: str, mode: Mode, size: int) -> MethodPoint | None:
        """Return one point; None if it is missing."""
        wanted = (method, mode, size)
        return next((p for p in self.points if (p.method, p.mode, p.size) == wanted), None)

    def title_of(self, method: str) -> str:
        """Return a method's name in tables."""
        return next(info.title for info in self.methods if info.name == method)
