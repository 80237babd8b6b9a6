"""Run a federation: every scenario with every rule and strategy, and the reference rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.data.splits import drawn_over_skills
from modalign.data.supervision import Sample, tokenise_all
from modalign.errors import DataError
from modalign.federation import scenarios, seeds
from modalign.federation.assemble import CellResult, assemble
from modalign.federation.clients import Client, RecordPool, read_pool, split
from modalign.federation.config import FederateConfig
from modalign.federation.pools import Pool, pool_of
from modalign.federation.report import report_of
from modalign.federation.results import CENTRALISED, LOCAL, UNTRAINED, Federation
from modalign.federation.rounds import Cell, Federated, Round
from modalign.federation.strategies import parse
from modalign.federation.workplace import Task, Workplace
from modalign.files import write_atomically
from modalign.memory import return_freed_memory
from modalign.models.quiet import quietly
from modalign.models.saved import open_composed
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.strict_json import read_object
from modalign.training.budget import Budget
from modalign.training.splits import usable_records

MODEL = "model"


@quietly()
def federate(
    config: FederateConfig,
    out: Path,
    *,
    ray: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Federation:
    """Train one model with many owners' records, in every combination that the configuration names.

    Args:
        config: the federation.
        out: folder of the run: ``report.html``, ``report.md``, ``report.json``, ``cells/``, ``model/``.
        ray: None trains in this process; ``local`` or a cluster's address on Ray.
        resume: continue the run in ``out``.
        overwrite: delete the run in ``out``.
        progress: called as it goes.

    Raises:
        UsageError: the configuration is invalid; DataError: a client has no usable records.
        ModalignError: too few clients answered in a round.
    """
    return_freed_memory()
    claim = run_folder(out, config.model_dump(mode="json"), resume=resume, overwrite=overwrite)
    with claim as folder, pool_of(ray) as pool:
        run = _Run(config, out, pool, progress)
        run.check()
        folder.begin()
        cells = [run.result(cell) for cell in run.cells()]
        result = assemble(
            config, run.clients_of(0), run.evaluation, cells, run.notes, run.parameters
        )
        run.save(result)
        report_of(result).write(out)
        return result


@dataclass
class _Run:
    config: FederateConfig
    out: Path
    pool: Pool
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        self._place: Workplace | None = None
        self._clients: dict[int, list[Client]] = {}
        self._samples: dict[
            tuple[str, bool, int], dict[str, tuple[list[Sample], list[Sample]]]
        ] = {}

    # ------------------------------------------------------------------ data

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        if self.config.model is not None:
            return open_composed(self.config.model).tokenizer
        assert self.config.parts is not None
        return self.config.parts.load_llm().tokenizer

    @cached_property
    def modalities(self) -> list[str]:
        """The modalities that the model takes."""
        if self.config.model is not None:
            return [each.modality for each in open_composed(self.config.model).encoders]
        assert self.config.parts is not None
        return self.config.parts.modalities

    def _read(self, name: str, path: str) -> list[Record]:
        return usable_records(
            self.config.data, name, path, self.notes, self.progress, self.modalities
        )

    @cached_property
    def _records(self) -> RecordPool:
        return read_pool(self.config.clients, self.config.data.train, self._read, self.tokenizer)

    def clients_of(self, seed: int) -> list[Client]:
        """Return the clients of one seed."""
        if seed not in self._clients:
            self._clients = {seed: split(self.config.clients, self._records, seed)}
        return self._clients[seed]

    @cached_property
    def evaluation(self) -> list[Record]:
        """The records that judge all models: those given, or all clients' held-out ones."""
        given = self.config.data.eval or self.config.data.val
        if given is not None:
            records = self._read("the evaluation data", given)
        else:
            pairs = zip(self._records.records, self._records.held.tolist(), strict=True)
            records = [record for record, held in pairs if held]
        return drawn_over_skills(records, self.config.eval_records)

    def judged(self, prompt: bool) -> list[Sample]:
        """Return the evaluation samples."""
        return self._tokenised(self.evaluation, prompt)

    def _tokenised(self, records: Sequence[Record], prompt: bool) -> list[Sample]:
        if prompt:
            records = [scenarios.agnostic(record, self.config.prompt) for record in records]
        return tokenise_all(records, self.tokenizer)

    def samples(
        self, scenario: str, prompt: bool, seed: int
    ) -> dict[str, tuple[list[Sample], list[Sample]]]:
        """Return client -> its training samples and its held-out ones, in a scenario.

        Raises:
            DataError: the scenario leaves a client nothing.
        """
        key = (scenario, prompt, seed)
        if key not in self._samples:
            clients = self.clients_of(seed)
            whole = {c.name: [*c.train, *c.held] for c in clients}
            kept = {id(record) for c in clients for record in c.held}
            places = {
                name: {r.id for r in records if id(r) in kept} for name, records in whole.items()
            }
            found = {}
            for name, records in scenarios.applied(scenario, whole, seed).items():
                train = [record for record in records if record.id not in places[name]]
                held = [record for record in records if record.id in places[name]]
                if not train:
                    raise DataError(
                        f"client {name!r} has no usable records to train on in scenario {scenario}: none of them "
                        "holds what it leaves; choose another scenario, or leave the client out"
                    )
                found[name] = (self._tokenised(train, prompt), self._tokenised(held, prompt))
            self._samples = {k: v for k, v in self._samples.items() if k[2] == seed}
            self._samples[key] = found
        return self._samples[key]

    # ------------------------------------------------------------------ what is trained

    def cells(self) -> list[Cell]:
        """Return every training, grouped by seed, so that each seed's model is made once."""
        c = self.config
        noises: list[float | None] = list(c.privacy.noise) if c.privacy else [None]
        found = []
        for seed in range(c.seeds):
            for scenario in c.scenarios:
                prompts = dict.fromkeys(
                    "prompt" if parse(s).prompt else "plain" for s in c.strategies
                )
                for name in (UNTRAINED, LOCAL, CENTRALISED):
                    found += [Cell(scenario, name, strategy, None, seed) for strategy in prompts]
                found += [
                    Cell(scenario, rule, strategy, noise, seed)
                    for rule in c.rules
                    for strategy in c.strategies
                    for noise in noises
                ]
        return found

    def place(self, seed: int) -> Workplace:
        """Return the model of a seed."""
        if self._place is None or self._place.seed != seed:
            first = self.samples(self.config.scenarios[0], False, seed)
            everyone = [sample for train, _ in first.values() for sample in train]
            self._place = Workplace(self.config, seed, everyone)
        return self._place

    @property
    def parameters(self) -> int:
        """Return the number of parameters that travel."""
        return self.place(0).parameters

    def check(self) -> None:
        """Refuse in advance what would end the run later.

        Raises:
            UsageError, DataError: see :func:`federate`.
        """
        for scenario in self.config.scenarios:
            self.samples(scenario, False, 0)
        self.judged(False)
        self.notes += self.place(0).tuning.check(self.out)

    # ------------------------------------------------------------------ one cell

    def result(self, cell: Cell) -> CellResult:
        """Train and judge a cell, or read what an earlier run left."""
        folder = self.out / "cells" / cell.key
        file = folder / "result.json"
        self.done += 1
        if file.exists():
            return CellResult.model_validate(read_object(file))
        found = self._trained(cell, folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, found.model_dump_json())
        return found

    def _trained(self, cell: Cell, folder: Path) -> CellResult:
        prompt = parse(cell.strategy).prompt
        samples = self.samples(cell.scenario, prompt, cell.seed)
        place, judged = self.place(cell.seed), self.judged(prompt)
        if cell.rule == LOCAL:
            return self._alone(cell, folder, samples, judged)
        rounds: list[Round] = []
        if cell.rule == UNTRAINED:
            place.set(place.start, {})
        elif cell.rule == CENTRALISED:
            everyone = [sample for train, _ in samples.values() for sample in train]
            task = self._whole(cell, folder, CENTRALISED, everyone, len(samples))
            place.set(place.train(task), {})
        else:
            training = {name: train for name, (train, _) in samples.items()}
            work = Federated(self.config, cell, place, training, folder, self.pool, self._telling())
            server, rounds = work.run()
            place.set(server.tensors, server.base)
        return CellResult(
            cell=vars(cell),
            correct=place.correct(judged).astype(float).tolist(),
            own={
                name: place.correct(held).astype(float).tolist()
                for name, (_, held) in samples.items()
                if held
            },
            rounds=rounds,
        )

    def _alone(
        self,
        cell: Cell,
        folder: Path,
        samples: dict[str, tuple[list[Sample], list[Sample]]],
        judged: list[Sample],
    ) -> CellResult:
        """Train every client alone; a question scores the share of clients that answer it right."""
        place = self.place(cell.seed)
        tasks = [self._whole(cell, folder, name, train) for name, (train, _) in samples.items()]
        correct, own = np.zeros(len(judged)), {}
        for task, answer in self.pool.run(place, tasks):
            if isinstance(answer, str):
                raise DataError(f"client {task.client!r} cannot be trained alone: {answer}")
            place.set(answer, {})
            correct += place.correct(judged) / len(samples)
            if held := samples[task.client][1]:
                own[task.client] = place.correct(held).astype(float).tolist()
        return CellResult(cell=vars(cell), correct=correct.tolist(), own=own, rounds=[])

    def _whole(
        self, cell: Cell, folder: Path, name: str, samples: Sequence[Sample], clients: int = 1
    ) -> Task:
        """Train without a server, with the budget of these clients over all rounds."""
        c = self.config
        share = (c.clients.sampled or 10**9) / len(self.clients_of(cell.seed))
        budget = Budget.parse(c.budget).share(c.rounds * min(share, 1.0) * clients)
        place = self.place(cell.seed)
        return Task(
            name,
            samples,
            place.start,
            {},
            cell.strategy,
            str(budget),
            1.0,
            c.training.lora_rank,
            seeds.number(cell.seed, name),
            folder / "work" / str(seeds.number(name)),
        )

    def _telling(self) -> Callable[[int, int], None]:
        total = len(self.cells())

        def tell(number: int, answered: int) -> None:
            if self.progress:
                rounds = self.config.rounds
                self.progress(
                    "federating", (self.done - 1) * 100 + 100 * number // rounds, total * 100
                )

        return tell

    # ------------------------------------------------------------------ the model

    def save(self, result: Federation) -> None:
        """Save the model of the first federated cell as an ordinary model folder."""
        cell = next(c for c in self.cells() if c.rule not in (UNTRAINED, LOCAL, CENTRALISED))
        samples = self.samples(cell.scenario, parse(cell.strategy).prompt, cell.seed)
        training = {name: train for name, (train, _) in samples.items()}
        self._place = None
        place = self.place(cell.seed)
        folder = self.out / "cells" / cell.key
        server, _ = Federated(self.config, cell, place, training, folder, self.pool).run()
        place.set(server.tensors, server.base)
        place.tuning.save(self.out / MODEL)
