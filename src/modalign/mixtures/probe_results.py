"""The results of a probe: what report.json holds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modalign.mixtures.config import ProbeConfig
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference
from modalign.version import __version__

EVERYTHING, RANDOM, ORACLE = "no filter", "random third", "oracle"
Kind = Literal["reference", "candidate", "control"]
Phase = Literal["pools", "combination", "repetition"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Strict):
    """Trainings on one choice of records.

    Attributes:
        name: of the row.
        kind: ``reference`` (no filter, untrained, the oracle), ``control`` (random choices of the same size) or
            ``candidate``, which can be recommended.
        phase: of the probe.
        operators: statistics that chose the records, each with its level.
        control: the random row of the same size.
        share: of all records.
        records: number of records.
        passes: over them within the budget.
        good: share of them that the truth calls good.
        figure: of all seeds on the records that choose.
        seeds: each seed's figure.
        test: the figure on the evaluation data, which chooses nothing.
    """

    name: str
    kind: Kind
    phase: Phase = "pools"
    operators: dict[str, str] = Field(default_factory=dict)
    control: str | None = None
    share: float | None = None
    records: int = 0
    passes: float = 0.0
    good: float | None = None
    figure: Estimate
    seeds: list[float]
    test: Estimate | None = None


class Ranked(_Strict):
    """A statistic over the training records.

    Attributes:
        name: of the operator.
        records: that have a value.
        quantiles: minimum, the two cuts, maximum.
        ties: share of records that equal a cut's value, split by chance.
        finds: area under the ROC curve: how well high values tell good records from bad ones, by the truth.
        kept: pool -> share of good records in it.
        best: the pool with the best figure.
        found: the pool found better than no filter, if any.
    """

    name: str
    records: int
    quantiles: list[float]
    ties: float
    finds: Estimate | None = None
    kept: dict[str, float] = Field(default_factory=dict)
    best: str = ""
    found: str | None = None


class Probe(_Strict):
    """A finished probe.

    Attributes:
        config: what was asked.
        command, finished, version: how and when.
        records: training records, without held-out ones and overlap.
        held: number of records that choose.
        chosen: the row that is recommended.
        reason: why.
        judged: the chosen row against no filter on the evaluation data.
        rows: all trainings.
        operators: the statistics.
        candidates: every candidate against no filter; corrected together (Holm).
        controls: every candidate against the random row of its size.
        references: the oracle and the random third against no filter.
        kept: file of the records that the chosen row keeps.
        notes: about the data and the run.
    """

    config: ProbeConfig
    command: str
    finished: str
    version: str = __version__
    records: int
    held: int
    chosen: str
    reason: str
    judged: Difference | None = None
    rows: list[Row]
    operators: list[Ranked]
    candidates: list[Difference]
    controls: list[Difference]
    references: list[Difference]
    kept: str | None = None
    notes: list[str] = Field(default_factory=list)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)
