"""The configurations of ``data probe`` and ``data mix``: a model, data, a budget, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveInt, model_validator

from modalign.configuration import Fields, validated
from modalign.errors import UsageError
from modalign.progress import Progress
from modalign.starter.build import BuiltIn
from modalign.training.budget import Budget
from modalign.training.experiment import Experiment, load_experiment
from modalign.training.sources import DataFiles, Parts

Metric = Literal["loss", "accuracy"]
When = Literal["found", "always", "never"]


class LoopConfig(Experiment):
    """What both verbs train, and how.

    Attributes:
        parts: a language model and encoders, composed anew for every training; or
        model: a saved model that every training starts from.
        method: whose connector is composed with ``parts``.
        budget: of every training, in samples or flops; None: as many samples as there are records.
        seeds: trainings of each row.
        metric: what is judged by: the loss in nats per token of the answers, or exact answers.
        held_out: share of the training data held out, where no validation data is given.
        held_records: records that a model is judged on, at most.
    """

    parts: Parts | None = None  # type: ignore[assignment]
    model: str | None = None
    method: str = "mlp"
    budget: str | None = None  # type: ignore[assignment]
    seeds: PositiveInt = 3
    metric: Metric = "loss"
    held_out: float = Field(default=0.1, gt=0, lt=1)
    held_records: PositiveInt = 1000

    @model_validator(mode="after")
    def _trainable(self) -> LoopConfig:
        if self.parts is None and self.model is None:
            raise ValueError("name parts (a language model and encoders), or a saved model")
        if self.budget is not None and _budget(self.budget).kind == "seconds":
            raise ValueError(
                "budget: give samples or flops; under seconds, equal pools would get unequal trainings"
            )
        return self

    def allowance(self, records: int) -> Budget:
        """Return the budget of a training, with so many records in all."""
        return Budget("samples", records) if self.budget is None else Budget.parse(self.budget)


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except UsageError as error:
        raise ValueError(str(error)) from None


class ProbeConfig(LoopConfig):
    """A probe of data by training on its pools.

    Attributes:
        operators: statistics that cut the pools (:mod:`modalign.mixtures.statistics`).
        truth: a column of the training data that says which rows are good, for the row ``oracle``.
        limit: training records to use, at most.
        combine: train on the records that several operators' pools share: if they were found better
            than no filter, always, or never.
        repetition: compare shares of the best records, and random ones, under the same budget.
        shares: those shares, beside a third and everything.
        seed: of everything drawn.
    """

    operators: list[str] = Field(default=["length[of=answer]"], min_length=1)
    truth: str | None = None
    limit: PositiveInt | None = None
    combine: When = "found"
    repetition: When = "found"
    shares: list[float] = Field(default=[1 / 6, 2 / 3])
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sensible(self) -> ProbeConfig:
        if len(set(self.operators)) < len(self.operators):
            raise ValueError("operators: one is named twice")
        if any(not 0 < share < 1 for share in self.shares):
            raise ValueError("shares: each lies between 0 and 1")
        if len({f"{100 * share:.3g}" for share in self.shares}) < len(self.shares):
            raise ValueError("shares: two are equal, or nearly so")
        return self


class MixFiles(DataFiles):
    """Data files of a mixture: the sources are named apart.

    Attributes:
        val: records of what the mixture is for; None: the mean over all sources' held-out parts.
        eval: records that judge the chosen mixture, and choose nothing.
    """

    train: BuiltIn = ""


RESERVED = {"val", "eval", "objective"}  # targets that are no source


class MixConfig(LoopConfig):
    """Mixtures of data sources, ranked by merged experts.

    Attributes:
        sources: name -> file of records or plain text.
        parts_of_one: mixtures are all multiples of one over this number that sum to one, or
        mixtures: these, each source -> weight.
        merge, merge_options: how experts are merged (:mod:`modalign.merging`).
        checked: mixtures that are trained for real, spread over the proxy's ranking, the chosen one among them.
        seed: of what is drawn.
    """

    data: MixFiles = Field(default_factory=MixFiles)
    sources: dict[str, BuiltIn] = Field(default_factory=dict)
    parts_of_one: int = Field(default=4, ge=2, le=20)
    mixtures: list[dict[str, float]] = Field(default_factory=list)
    merge: str = "linear"
    merge_options: dict[str, Any] = Field(default_factory=dict)
    checked: int = Field(default=6, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _mixable(self) -> MixConfig:
        if len(self.sources) < 2:
            raise ValueError(
                f"sources: {len(self.sources)} given; a mixture needs two or more, as NAME=FILE"
            )
        if taken := sorted(RESERVED & set(self.sources)):
            raise ValueError(f"sources: {taken[0]!r} means something else; choose another name")
        for number, mixture in enumerate(self.mixtures):
            if unknown := sorted(set(mixture) - set(self.sources)):
                raise ValueError(f"mixtures.{number}: there is no source {unknown[0]!r}")
            if any(weight < 0 for weight in mixture.values()) or not sum(mixture.values()):
                raise ValueError(f"mixtures.{number}: weights are 0 or more, and not all 0")
        return self


# What the built-in starter probes without a configuration of one's own: minutes on one core.
STARTER: Fields = {
    "budget": None,
    "seeds": 2,
    "limit": 1500,
    "operators": ["length[of=answer]", "agreement"],
}
YAML = (".yaml", ".yml")

C = TypeVar("C", bound=LoopConfig)


def load_loop(
    schema: type[C],
    source: str | None,
    changes: Fields | None = None,
    progress: Progress | None = None,
    starter: Fields | None = None,
) -> C:
    """Resolve a configuration file, or a data file, and options.

    Args:
        schema: of the verb.
        source: a YAML file; else the training data; None: the built-in starter.
        changes: options.
        progress: called while the starter's data is written on first use.
        starter: what the starter sets.

    Raises:
        UsageError: an unreadable file, an unknown field, a wrong value.
    """
    changes = dict(changes or {})
    if source is not None and Path(source).suffix.lower() not in YAML:
        changes["data"] = {**changes.get("data", {}), "train": source}
        source = None
    if source is None and changes.get("model") is not None:  # nothing of the starter
        training = {"llm": "lora", **changes.get("training", {})}
        return validated(schema, {**changes, "training": training}, "the options")
    found = load_experiment(schema, source, changes, progress, starter)[0]
    return found if source is None else _beside(found, Path(source).parent)


def _beside(config: C, root: Path) -> C:
    """Return a file's configuration with its model and sources found beside the file."""
    changed: Fields = {}
    if config.model is not None and (root / config.model).is_dir():
        changed["model"] = str(root / config.model)
    if isinstance(config, MixConfig):
        changed["sources"] = {name: str(root / path) for name, path in config.sources.items()}
    return config.model_copy(update=changed)
