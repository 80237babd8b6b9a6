"""The results of a federation: what report.json holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from modalign.federation.config import FederateConfig
from modalign.federation.rounds import Round
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference

CENTRALISED, LOCAL, UNTRAINED = "centralised", "local-only", "untrained"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClientRow(_Strict):
    """A client of the first seed: its records, and which modalities they hold in each scenario."""

    name: str
    records: int
    held: int
    labels: dict[str, int]
    modalities: dict[str, dict[str, int]]


class Own(_Strict):
    """A client's accuracy on its own held-out records, with the common model and with its own, trained alone.

    Attributes:
        client: its name.
        together, alone: over all seeds.
    """

    client: str
    together: Estimate
    alone: Estimate


class Row(_Strict):
    """A trained model's accuracy on the evaluation records.

    Attributes:
        scenario, rule, strategy: what was trained; rules of reference rows are their names.
        noise, epsilon: of differential privacy; without noise there is no guarantee, and no epsilon.
        accuracy: over all seeds and questions.
        seeds: accuracy of each seed.
        own: accuracy of each client, the worst first.
        worst: the client with the lowest accuracy of the common model.
        up, down: mean bytes of a round, over all its clients.
        lora_error: of the first and of the last round, averaged over seeds.
        lost, left_out: clients that did not answer, and whose numbers were not finite, over all rounds.
    """

    scenario: str
    rule: str
    strategy: str
    noise: float | None = None
    epsilon: float | None = None
    accuracy: Estimate
    seeds: list[float]
    own: list[Own] = Field(default_factory=list)
    worst: str | None = None
    up: float | None = None
    down: float | None = None
    lora_error: tuple[float, float] | None = None
    lost: int = 0
    left_out: int = 0

    @property
    def name(self) -> str:
        """Return its name in comparisons of rows within one scenario."""
        return row_name(self.rule, self.strategy, self.noise)


def row_name(rule: str, strategy: str, noise: float | None) -> str:
    """Return a row's name in comparisons of rows within one scenario."""
    words = [rule]
    if strategy != "plain":
        words.append(strategy)
    if noise is not None:
        words.append(f"noise {noise:g}")
    return ", ".join(words)


class ScenarioPairs(_Strict):
    """Paired differences of one scenario."""

    scenario: str
    differences: list[Difference]


class Federation(_Strict):
    """A finished federation.

    Attributes:
        config: as it was run.
        command, finished: how and when.
        clients: of the first seed.
        rows: federated ones and references.
        pairs: federated rows against the references, with p-values corrected over each scenario's.
        rounds: cell -> what happened in each round.
        parameters: number of parameters that travel.
        delta: the delta for which epsilon is stated.
        notes: what a reader should know.
        model: folder of the saved model, and which row it is.
    """

    config: FederateConfig
    command: str
    finished: str
    clients: list[ClientRow]
    rows: list[Row]
    pairs: list[ScenarioPairs]
    rounds: dict[str, list[Round]]
    parameters: int
    delta: float | None = None
    majority: Estimate | None = None
    notes: list[str]
    model: str
