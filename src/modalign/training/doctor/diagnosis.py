"""The doctor's result: checks with a status, facts of every method, a decoded sample."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from modalign.errors import ModalignError
from modalign.training.memory.estimate import MemoryEstimate
from modalign.training.trainable import PartCount

Status = Literal["ok", "warning", "error"]


class Check(BaseModel):
    """One check.

    Attributes:
        section: data, text, encoder, methods or machine.
        name: unique together with the method it names.
        status: ok, warning or error.
        detail: the finding.
        advice: what to do about it.
        exit_code: of an error: 3 data, 2 usage, 1 other.
    """

    section: str
    name: str
    status: Status
    detail: str
    advice: str | None = None
    exit_code: int = 0


class Segment(BaseModel):
    """A segment of the decoded sample."""

    text: str
    supervised: bool


class MethodFacts(BaseModel):
    """Facts about one method on this data.

    Attributes:
        tokens: positions one medium takes in the language model (a mark for in-layer methods).
        features: the connector's actual tokens for one medium; None if it could not be run.
        longest: tokens of the longest sample; ``limit`` is the language model's maximum.
        padding: share of positions without a token in the first batches.
        steps: optimizer steps of each stage that the budget pays for, without trials; None if the
            budget is in seconds.
        parts: trained parameters per part.
        memory: the estimated peak.
        references: FLOPs per record of each reference that terms read.
    """

    name: str
    family: str
    enters: str
    tokens: int = 0
    features: int | None = None
    longest: int = 0
    limit: int | None = None
    padding: float = 0.0
    steps: dict[str, int] | None = None
    parts: list[PartCount] = []
    memory: MemoryEstimate | None = None
    references: dict[str, float] = {}


class Diagnosis(BaseModel):
    """The complete result."""

    checks: list[Check] = []
    sample: list[Segment] = []
    sample_source: str | None = None
    encoder: dict[str, dict[str, Any]] = {}
    methods: list[MethodFacts] = []

    def add(self, section: str, name: str, detail: str, advice: str | None = None) -> None:
        """Record a passed check, or with advice a warning."""
        status: Status = "warning" if advice else "ok"
        check = Check(section=section, name=name, status=status, detail=detail, advice=advice)
        self.checks.append(check)

    def fail(self, section: str, name: str, error: Exception) -> None:
        """Record an error."""
        code = error.exit_code if isinstance(error, ModalignError) else 1
        check = Check(section=section, name=name, status="error", detail=str(error), exit_code=code)
        self.checks.append(check)

    def of(self, status: Status) -> list[Check]:
        """Return the checks with a status."""
        return [check for check in self.checks if check.status == status]

    @property
    def exit_code(self) -> int:
        """Return the first error's exit code; 0 without errors."""
        errors = self.of("error")
        return errors[0].exit_code if errors else 0
