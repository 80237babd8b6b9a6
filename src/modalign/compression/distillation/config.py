"""What a distillation depends on: models, data, schedules, budget."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from modalign.compression.layers import LayerRule
from modalign.starter.build import BuiltIn
from modalign.training.settings import TrainSettings


class DistillConfig(BaseModel):
    """What to distil, and how.

    Attributes:
        teacher: folder of a model.
        student: folder; None: made from the teacher.
        student_layers: how many decoder layers the student keeps.
        layers_by: how those are chosen.
        student_connector: name of a new connector to the student's encoder, or to the teacher's.
        data: records or plain text to train on.
        evaluation: to judge by; None: a fixed tenth of ``data``, media never on both sides.
        schedule: of the saved model (:class:`modalign.compression.distillation.schedules.Variant`).
        against: further variants, under the same budget.
        terms: term -> options that replace the schedules': ``{"kl_answer": {"temperature": 2}}``.
        budget: of every training, the teacher's passes included.
        training: settings; by default the whole language model trains.
        seeds: trainings of every variant.
        seed: of the first one.
        length: tokens of a window of plain text.
    """

    model_config = ConfigDict(extra="forbid")

    teacher: BuiltIn
    student: BuiltIn | None = None
    student_layers: PositiveInt | None = None
    layers_by: LayerRule = "influence"
    student_connector: str | None = None
    data: BuiltIn
    evaluation: BuiltIn | None = None
    schedule: str = "throughout"
    against: list[str] = Field(default_factory=list)
    terms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    budget: str = "20000samples"
    training: TrainSettings = Field(default_factory=lambda: TrainSettings(llm="full"))
    seeds: PositiveInt = 1
    seed: int = 0
    length: int = Field(default=256, ge=2)
