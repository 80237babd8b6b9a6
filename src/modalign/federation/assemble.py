"""Turn the cells of all seeds into rows with intervals and paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from modalign.data.records import Record
from modalign.evaluation.guessing import BlindGuess
from modalign.federation import privacy, scenarios
from modalign.federation.clients import Client
from modalign.federation.config import FederateConfig
from modalign.federation.results import (
    CENTRALISED,
    LOCAL,
    UNTRAINED,
    ClientRow,
    Federation,
    Own,
    Row,
    ScenarioPairs,
    row_name,
)
from modalign.federation.rounds import Round
from modalign.numbers.estimate import exactly
from modalign.numbers.pairs import Difference, compare_with
from modalign.numbers.shares import share
from modalign.numbers.trainings import estimate_means
from modalign.runs import command_line

REFERENCES = (UNTRAINED, LOCAL, CENTRALISED)


class CellResult(BaseModel):
    """A cell's outcome.

    Attributes:
        cell: its fields.
        correct: (n,) on the evaluation records; for local models, the share of clients that are right.
        own: client -> (m,) of its own held-out records.
        rounds: what happened; empty for references.
    """

    model_config = ConfigDict(extra="forbid")

    cell: dict[str, Any]
    correct: list[float]
    own: dict[str, list[float]]
    rounds: list[Round]

    @property
    def kind(self) -> tuple[str, str, str, float | None]:
        """Return everything about its cell except the seed."""
        c = self.cell
        return c["scenario"], c["rule"], c["strategy"], c["noise"]


def assemble(
    config: FederateConfig,
    clients: Sequence[Client],
    evaluation: Sequence[Record],
    cells: Sequence[CellResult],
    notes: Sequence[str],
    parameters: int,
) -> Federation:
    """Return the results of all cells."""
    kinds: dict[tuple[str, str, str, float | None], list[CellResult]] = {}
    for cell in cells:
        kinds.setdefault(cell.kind, []).append(cell)
    groups = [record.group or record.id for record in evaluation]
    rows, pairs = [], []
    delta = _delta(config, len(clients))
    for scenario in dict.fromkeys(kind[0] for kind in kinds):
        own = {kind: found for kind, found in kinds.items() if kind[0] == scenario}
        rows += _rows(config, own, groups, delta, len(clients))
        pairs.append(ScenarioPairs(scenario=scenario, differences=_pairs(own, groups)))
    guess = BlindGuess.of(record for client in clients for record in client.train)
    said = guess.majority(evaluation)
    right = [word == record.answer for word, record in zip(said, evaluation, strict=True)]
    return Federation(
        config=config,
        command=command_line(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        clients=[_client(config, client, clients) for client in clients],
        rows=rows,
        pairs=pairs,
        rounds={
            "__".join(map(str, (*c.kind, c.cell["seed"]))): c.rounds for c in cells if c.rounds
        },
        parameters=parameters,
        delta=delta,
        majority=exactly(float(np.mean(right)), len(right)),
        notes=[privacy.NO_SECURE_AGGREGATION, *dict.fromkeys(notes)],
        model="model",
    )


def _delta(config: FederateConfig, clients: int) -> float | None:
    if config.privacy is None:
        return None
    return config.privacy.delta or 1 / clients**1.1


def _rows(
    config: FederateConfig,
    kinds: dict[tuple[str, str, str, float | None], list[CellResult]],
    groups: Sequence[str],
    delta: float | None,
    clients: int,
) -> list[Row]:
    named = {"|".join(map(str, kind)): kind for kind in kinds}
    values = {name: np.array([c.correct for c in kinds[kind]]) for name, kind in named.items()}
    found = estimate_means(values, groups=groups)
    rows = []
    for name, kind in named.items():
        scenario, rule, strategy, noise = kind
        cells = kinds[kind]
        row = Row(
            scenario=scenario,
            rule=rule,
            strategy=strategy,
            noise=noise,
            accuracy=found[name],
            seeds=[float(np.mean(cell.correct)) for cell in cells],
        )
        if rule not in REFERENCES:
            prompt = "prompt" if "prompt" in strategy.split("+") else "plain"
            _fill(row, cells, kinds[scenario, LOCAL, prompt, None])
            if noise is not None and delta is not None:
                rate = min((config.clients.sampled or clients) / clients, 1.0)
                found_epsilon = privacy.epsilon(noise, rate, config.rounds, delta)
                row.epsilon = found_epsilon if math.isfinite(found_epsilon) else None
        rows.append(row)
    return rows


def _fill(row: Row, cells: Sequence[CellResult], alone: Sequence[CellResult]) -> None:
    """Add what only a federated row has: its clients, bytes and errors."""
    rounds = [each for cell in cells for each in cell.rounds]
    row.up = float(np.mean([each.up for each in rounds]))
    row.down = float(np.mean([each.down for each in rounds]))
    row.lora_error = (
        float(np.mean([cell.rounds[0].lora_error for cell in cells])),
        float(np.mean([cell.rounds[-1].lora_error for cell in cells])),
    )
    row.lost = sum(len(each.lost) for each in rounds)
    row.left_out = sum(len(each.left_out) for each in rounds)
    for client in dict.fromkeys(name for cell in cells for name in cell.own):
        together, own = (
            [flag for cell in found for flag in cell.own.get(client, [])]
            for found in (cells, alone)
        )
        row.own.append(Own(client=client, together=share(together), alone=share(own)))
    row.own.sort(key=lambda own: own.together.value)
    row.worst = row.own[0].client if row.own else None


def _pairs(
    kinds: dict[tuple[str, str, str, float | None], list[CellResult]], groups: Sequence[str]
) -> list[Difference]:
    """Return federated rows against local-only and centralised, paired over seeds and questions."""
    found: list[Difference] = []
    for reference in (LOCAL, CENTRALISED):
        gains = {}
        for (scenario, rule, strategy, noise), cells in kinds.items():
            if rule in REFERENCES:
                continue
            prompt = "prompt" if "prompt" in strategy.split("+") else "plain"
            theirs = kinds[scenario, reference, prompt, None]
            gains[row_name(rule, strategy, noise)] = np.array([c.correct for c in cells]) - [
                c.correct for c in theirs
            ]
        nothing = np.zeros(len(groups))
        found += compare_with(reference, nothing, gains, groups=groups)
    return found


def _client(config: FederateConfig, client: Client, clients: Sequence[Client]) -> ClientRow:
    label = config.clients.label
    values = [
        str({"skill": r.skill, "answer": r.answer, "group": r.group}.get(label, r.extra.get(label)))
        for r in client.train
    ]
    modalities = {}
    everyone = {each.name: [*each.train, *each.held] for each in clients}
    for scenario in config.scenarios:
        records = scenarios.applied(scenario, everyone, 0)[client.name]
        modalities[scenario] = dict(
            sorted(Counter(m for r in records for m in scenarios.modalities_in(r)).items())
        )
    return ClientRow(
        name=client.name,
        records=len(client.train),
        held=len(client.held),
        labels=dict(Counter(values).most_common()),
        modalities=modalities,
    )
