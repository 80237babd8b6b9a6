"""What a pruning depends on: model, target, form, data, recovery."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from modalign.starter.build import BuiltIn
from modalign.training.settings import TrainSettings

KEEP = 0.75  # where no target is given


class PruneConfig(BaseModel):
    """What to prune, and how.

    Attributes:
        model: folder of the parent.
        keep: share of the layers' parameters that may stay; 0.75 where no target is given.
        latency: share of the parent's measured time for the next token that may stay.
        memory: size of the weights as stored, such as ``2GiB``.
        form: uniform, depth, per_layer, mask, or auto.
        score: a registered score; None: block_influence for depth, else fluctuation.
        units: kinds that may be cut, mlp and heads; None: all that the model has.
        part: the language model, or the vision tower.
        compensate: biases that make up for the mean of removed inputs; None: for fluctuation without recovery,
            where the class can carry them.
        data: records or plain text to calibrate, recover and judge on; None: samples of the model.
        evaluation: further records that every model is scored on.
        recover: how it is trained afterwards; None: full, above 500 M parameters lora.
        recover_by: the divergence from the parent's predictions, or cross-entropy.
        recover_budget: of every recovery, the parent's passes included.
        scratch: also train a model of the pruned shape from random weights.
        training: settings; learning rates that are not given follow from the width.
        rounds: interleaved rounds in which times are measured; 0: no times.
        seeds: recoveries of every model.
        seed: of the first one, of the model's samples, the split and chance.
        length: tokens of a window of plain text.
    """

    model_config = ConfigDict(extra="forbid")

    model: BuiltIn
    keep: float | None = None
    latency: float | None = None
    memory: str | None = None
    form: str = "uniform"
    score: str | None = None
    units: list[str] | None = None
    part: Literal["language", "vision"] = "language"
    compensate: bool | None = None
    data: BuiltIn | None = None
    evaluation: BuiltIn | None = None
    recover: Literal["full", "lora", "none"] | None = None
    recover_by: Literal["kl", "cross_entropy"] = "kl"
    recover_budget: str = "1000samples"
    scratch: bool = False
    training: TrainSettings = Field(default_factory=lambda: TrainSettings(batch_size=8))
    rounds: int = Field(default=9, ge=0)
    seeds: PositiveInt = 1
    seed: int = 0
    length: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _one_target(self) -> PruneConfig:
        given = [n for n in ("keep", "latency", "memory") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} are two targets: give one")
        return self

    @property
    def target(self) -> str:
        """The target in words."""
        if self.memory is not None:
            return f"weights of at most {self.memory}"
        if self.latency is not None:
            return f"{self.latency:g} of the time for the next token"
        return f"{KEEP if self.keep is None else self.keep:g} of the layers' parameters"
