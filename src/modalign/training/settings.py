"""Settings of a training: stages, learning rates, batch, precision. From YAML, printed resolved."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

LLMMode = Literal["frozen", "lora", "full"]
EncoderMode = Literal["frozen", "full"]
RecordKind = Literal["captions", "instructions", "text"]  # each record has exactly one
Selector = Annotated[str, Field(pattern=r"^(all|media|captions|instructions|text|domain:.+)$")]


STAGE_ONE = "stage_one"  # name of a connector's own stage
WITHOUT_STAGE_ONE = "_no_stage_one"  # suffix of a method without its own stage one


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LearningRates(_Strict):
    """One learning rate per part; 0 means frozen."""

    connector: float = Field(default=1e-3, ge=0)
    llm: float = Field(default=2e-5, ge=0)
    encoder: float = Field(default=2e-6, ge=0)

    def scaled(self, factor: float) -> LearningRates:
        """Return all rates times a factor (for a learning-rate trial)."""
        return LearningRates(**{part: rate * factor for part, rate in self.model_dump().items()})


LORA_RATE = 2e-4  # published recipes use about ten times the rate of full tuning for adapters


START = "start"  # the reference that every stage has: the model as the stage finds it


class Stage(_Strict):
    """One stage of a recipe.

    Attributes:
        name: for logs.
        share: of the method's training budget.
        runs: ``model`` (the whole model, through the language model) or ``stage_one`` (the
            connector's own pre-training, without the language model).
        objective: term -> weight, or ``{"weight": ..., "role": ..., option: ...}``
            (:mod:`modalign.training.objectives`).
        references: name -> folder of a frozen model that terms read. ``start``, the model as the
            stage finds it, needs no folder.
        roles: role -> its records, selected as in ``data``: every batch contains all roles in equal
            numbers, and a term reads those of its ``role``.
        matched: the records of a batch belong together by their group: one of each role, or ``all`` of its
            records.
        data: which records (:func:`modalign.training.recipes.select`): ``all``, those with media
            (``media``), ``captions``, ``instructions``, those without media (``text``), or those of
            a skill, domain or source: ``domain:counting``; ``domain:*`` is the largest skill.
        pairs: ``true``, or ``shuffled``: every medium is replaced by another record's (a control).
        mix: kind -> its share of the stage's records, besides ``data``.
        llm, encoder: overrides for this stage.
        learning_rates: of this stage, instead of the run's.
    """

    name: str = "train"
    share: PositiveFloat = 1.0
    runs: Literal["model", "stage_one"] = "model"
    objective: dict[str, float | dict[str, Any]] = {"cross_entropy": 1.0}
    references: dict[str, str] = Field(default_factory=dict)
    roles: dict[str, Selector] = Field(default_factory=dict)
    matched: bool | Literal["all"] = False
    data: Selector = "all"
    pairs: Literal["true", "shuffled"] = "true"
    mix: dict[RecordKind, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    llm: LLMMode | None = None
    encoder: EncoderMode | None = None
    learning_rates: LearningRates | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Stage:
        if sum(self.mix.values()) >= 1:
            raise ValueError("the shares of mix sum to 1 or more, so nothing is left for data")
        if self.data in self.mix:
            raise ValueError(f"mix adds {self.data}, which is already the stage's data")
        if self.roles and (self.data != "all" or self.mix or self.pairs != "true"):
            raise ValueError("roles choose the records: leave out data, mix and pairs")
        if self.runs == "stage_one" and (self.roles or self.references):
            raise ValueError("a connector's own stage one takes neither roles nor references")
        if self.matched and len(self.roles) < 2:
            raise ValueError("matched records need two roles or more")
        if START in self.references:
            raise ValueError(
                f"the reference {START!r} is the stage's own model; choose another name"
            )
        return self


class TrainSettings(_Strict):
    """How to train, equal for every method of a comparison.

    Weights are float32 while they train; ``dtype`` is what is computed in (autocast), and ``save_dtype`` what the
    finished model is saved in: ``given`` is what the language model was stored in. ``schedule`` is how the rates
    fall (:data:`modalign.training.trainer.SCHEDULES`).
    """

    llm: LLMMode = "frozen"
    encoder: EncoderMode = "frozen"
    learning_rates: LearningRates = Field(default_factory=LearningRates)
    batch_size: PositiveInt = 32
    accumulate: PositiveInt = 1
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    packing: bool = False
    pack_length: PositiveInt = 256
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: PositiveFloat = 1.0
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    gradient_checkpointing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["given", "float32", "bfloat16", "float16"] = "given"
    device: str = "auto"
    checkpoint_seconds: PositiveFloat = 30.0
    val_points: PositiveInt = 8
    val_samples: PositiveInt = 256
    parallel: Literal["ddp", "fsdp"] = "ddp"
    processes: PositiveInt = 1
    tracker: Literal["none", "tensorboard"] = "none"

    @property
    def packed(self) -> int | None:
        """Return the positions of a packed row, or None if rows are padded."""
        return self.pack_length if self.packing else None

    @model_validator(mode="after")
    def _adapters_learn_faster(self) -> TrainSettings:
        if self.llm == "lora" and "llm" not in self.learning_rates.model_fields_set:
            self.learning_rates.llm = LORA_RATE
        return self
