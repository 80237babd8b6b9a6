"""The results of one model on the same questions under several conditions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference
from modalign.version import __version__

Kind = Literal["shots", "corruption", "rationale"]


class Condition(BaseModel):
    """One condition.

    Attributes:
        name: of it.
        setting: what it consists of: shots, labels, pictures, corruption, severity.
        score: mean score of the questions, 0 to 1.
        tokens: prompt tokens per question, media included, where they were counted.
        counts: what happened on the way, such as rationales without the mark.
    """

    name: str
    setting: dict[str, Any] = {}
    score: Estimate
    tokens: Estimate | None = None
    counts: dict[str, int] = {}


class Conditions(BaseModel):
    """The results, with everything needed to repeat them.

    Attributes:
        kind: what the conditions vary.
        model, data: folder and file.
        task, task_version, measure: how answers were scored.
        settings: of the conditions, the generation and the seed.
        patches: on the model, by name and hash.
        conditions: in the order asked.
        pairs: paired differences; p-values are corrected over all of them.
        references: chance, and the most frequent answer here.
        notes: what the figures do not say.
        harness, command: how they were made.
    """

    kind: Kind
    model: str
    data: str
    task: str
    task_version: int
    measure: str
    settings: dict[str, Any]
    patches: list[str] = []
    conditions: list[Condition]
    pairs: list[Difference]
    references: dict[str, Estimate] = {}
    notes: list[str] = []
    harness: str = f"modalign {__version__}"
    command: str = ""
