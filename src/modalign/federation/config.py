"""The configuration of a federation: the experiment, its clients, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from modalign.configuration import Fields
from modalign.errors import UsageError
from modalign.federation.lora import Aggregation
from modalign.federation.privacy import Privacy
from modalign.federation.scenarios import AGNOSTIC
from modalign.federation.scenarios import parse as parse_scenario
from modalign.federation.server import check_choice
from modalign.federation.strategies import parse as parse_strategy
from modalign.progress import Progress
from modalign.training.budget import Budget
from modalign.training.experiment import Experiment, load_experiment
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts

What = Literal["connector", "lora", "both"]


class Clients(BaseModel):
    """Who has which records.

    Attributes:
        by: ``folders`` (``data.train`` is a folder of the clients' folders), ``column:NAME`` (a client per value),
            ``dirichlet:ALPHA`` (shares of every label drawn from a Dirichlet distribution) or ``shards:N`` (N
            pieces each of the records sorted by label).
        count: of clients, for ``dirichlet`` and ``shards``.
        label: the column of the label; ``skill`` is the record's skill, ``answer`` its answer.
        sampled: clients per round; all by default.
        held_out: share of each client's records that judge the models.
        limit: the most records per client to train on; held-out ones in proportion.
        ranks: LoRA rank of each client, repeated if there are more; ``training.lora_rank`` by default.
    """

    model_config = ConfigDict(extra="forbid")

    by: str = "dirichlet:0.5"
    count: PositiveInt = 4
    label: str = "skill"
    sampled: PositiveInt | None = None
    held_out: float = Field(default=0.1, gt=0, lt=1)
    limit: PositiveInt | None = None
    ranks: list[PositiveInt] = Field(default_factory=list)

    @field_validator("by")
    @classmethod
    def _known(cls, by: str) -> str:
        kind, _, value = by.partition(":")
        good = {"folders": not value, "column": bool(value)}.get(kind)
        if kind in ("dirichlet", "shards"):
            try:
                number = float(value)
            except ValueError:
                number = 0.0
            good = number > 0 and (kind == "dirichlet" or number == int(number))
        if not good:
            raise ValueError("write folders, column:NAME, dirichlet:ALPHA or shards:N")
        return by


class FederateConfig(Experiment):
    """A federation.

    The budget is that of one client in one round.

    Attributes:
        method: the method whose connector is trained; not with ``model``.
        model: a saved model to train further, instead of ``parts``.
        train: what trains, and travels.
        clients: who has which records.
        rounds: number of rounds.
        scenarios, rules, strategies: what is compared, in every combination.
        seeds: trainings of each combination; every one redraws clients, weights and order.
        lora: how LoRA is aggregated.
        quorum: share of a round's clients that must answer.
        privacy: client-level differential privacy.
        prompt: of the strategy ``prompt``; names no modality.
        eval_records: the most records of the evaluation data to use.
    """

    parts: Parts | None = None  # type: ignore[assignment]
    method: str = "mlp"
    model: str | None = None
    train: What = "connector"
    clients: Clients = Field(default_factory=Clients)
    rounds: PositiveInt = 5
    scenarios: list[str] = Field(default=["aligned"], min_length=1)
    rules: list[str] = Field(default=["fedavg"], min_length=1)
    strategies: list[str] = Field(default=["plain"], min_length=1)
    seeds: PositiveInt = 2
    lora: Aggregation = "svd"
    quorum: float = Field(default=0.5, gt=0, le=1)
    privacy: Privacy | None = None
    prompt: str = AGNOSTIC
    eval_records: PositiveInt | None = None

    @model_validator(mode="after")
    def _agrees(self) -> FederateConfig:
        if self.parts is None and self.model is None:
            raise ValueError("name parts (a language model and encoders), or a saved model")
        try:
            for scenario in self.scenarios:
                parse_scenario(scenario)
            for strategy in self.strategies:
                parse_strategy(strategy)
            for rule in self.rules:
                check_choice(rule, self.lora, self.privacy is not None)
            budget = Budget.parse(self.budget)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if budget.kind == "seconds":
            raise ValueError(
                "budget: give samples or flops; seconds would make equal runs differ between machines"
            )
        if max(self.clients.ranks, default=1) > self.training.lora_rank:
            raise ValueError("clients.ranks: none may exceed training.lora_rank, the server's")
        return self

    @property
    def settings(self) -> TrainSettings:
        """Return the training settings with what trains."""
        rates = self.training.learning_rates
        if self.train == "lora":
            rates = rates.model_copy(update={"connector": 0.0})
        llm = "frozen" if self.train == "connector" else "lora"
        return self.training.model_copy(update={"llm": llm, "learning_rates": rates})


# What the built-in starter federates if no configuration is given: a few minutes on one core.
STARTER: Fields = {
    "budget": "320samples",
    "clients": {"by": "dirichlet:0.5", "count": 4, "limit": 400},
    "eval_records": 400,
}


def load_federation(
    path: str | Path | None, changes: Fields | None = None, progress: Progress | None = None
) -> FederateConfig:
    """Resolve a configuration file and options against their parent.

    Raises:
        UsageError: an unreadable file, an unknown field, a wrong value.
    """
    return load_experiment(FederateConfig, path, changes, progress, STARTER)[0]
