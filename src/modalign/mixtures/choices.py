"""Which records each row of a probe trains on: pools, what winners share, shares of the best, random ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from modalign.mixtures import pools
from modalign.mixtures.assemble import Choice, Judgement
from modalign.mixtures.config import ProbeConfig, When
from modalign.mixtures.pools import Places
from modalign.mixtures.probe_results import EVERYTHING, ORACLE, RANDOM, Phase
from modalign.mixtures.trials import UNTRAINED
from modalign.numbers.bootstrap import Floats

THIRD = 1 / len(pools.LEVELS)


@dataclass
class Choices:
    """All rows, as they come to be.

    Attributes:
        config: the probe.
        records: number of training records.
        truth: (n,) bool, which are good; None if unknown.
        values: operator -> (n,) its statistic.
        notes: for the report.
        all: the rows so far.
    """

    config: ProbeConfig
    records: int
    truth: np.ndarray | None
    values: dict[str, Floats]
    notes: list[str]
    all: list[Choice] = field(default_factory=list)

    def references(self) -> list[Choice]:
        """Add the rows that need no statistic: untrained, no filter, and the oracle if the truth is known."""
        everyone = np.arange(self.records)
        rows = {UNTRAINED: everyone[:0], EVERYTHING: everyone}
        if self.truth is not None:
            rows[ORACLE] = np.flatnonzero(self.truth)
        return self._added(
            [Choice(name, "reference", partial(_always, own)) for name, own in rows.items()]
        )

    def thirds(self) -> list[Choice]:
        """Add every operator's pools, and random thirds."""
        found: list[Choice] = []
        for name in self.config.operators:
            control = self._control(found, name, THIRD, "pools")
            cut = pools.terciles(self.values[name], name, self.config.seed)
            for level, places in cut.items():
                chosen = partial(_always, places)
                row = f"{name} {level}"
                found.append(Choice(row, "candidate", chosen, "pools", {name: level}, control))
        return self._added(found)

    def combined(self, judgement: Judgement) -> list[Choice]:
        """Add what the best pools of several operators share, the best pool first."""
        wanted = self._best(judgement, self.config.combine)
        found: list[Choice] = []
        for count in range(2, len(wanted) + 1):
            chosen = wanted[:count]
            places = pools.shared([choice.places(0) for choice in chosen])
            name = " and ".join(choice.name for choice in chosen)
            if len(places) < self.config.training.batch_size:
                self.notes.append(
                    f"{name} share {len(places)} records, less than a batch: their combination was not trained on."
                )
                break
            control = self._control(found, "", len(places) / self.records, "combination")
            operators = {k: v for choice in chosen for k, v in choice.operators.items()}
            shared = partial(_always, places)
            found.append(Choice(name, "candidate", shared, "combination", operators, control))
        return self._added(found)

    def shares(self, judgement: Judgement) -> list[Choice]:
        """Add shares of the best operator's records, and random ones: repetition against diversity."""
        found: list[Choice] = []
        for choice in self._best(judgement, self.config.repetition)[:1]:
            ((name, level),) = choice.operators.items()
            for share in self.config.shares:
                control = self._control(found, name, share, "repetition")
                best = pools.best_share(self.values[name], level, share, self.config.seed)
                row, own = f"{name} {level}: best {percent(share)}", partial(_always, best)
                found.append(Choice(row, "candidate", own, "repetition", {name: level}, control))
        return self._added(found)

    def pools_of(self, name: str) -> list[Choice]:
        """Return an operator's thirds."""
        return [each for each in self.all if each.phase == "pools" and name in each.operators]

    def _best(self, judgement: Judgement, when: When) -> list[Choice]:
        """Return each operator's best third, the best operator first: those found better, or all."""
        found = []
        for name in self.values if when != "never" else ():
            own = self.pools_of(name)
            if when == "found":
                own = [each for each in own if judgement.found(each.name)]
            if own:
                found.append(max(own, key=lambda each: judgement.value(each.name)))
        return sorted(found, key=lambda each: -judgement.value(each.name))

    def _control(self, found: list[Choice], operator: str, share: float, phase: Phase) -> str:
        """Return the random row of the same make, added to ``found`` unless there is one.

        Operators that have a value for different records need different ones.
        """
        values = self.values.get(operator, np.zeros(self.records))
        like = (share, np.isfinite(values).tobytes())
        known = [*self.all, *found]
        for choice in known:
            if choice.like == like:
                return choice.name
        name = RANDOM if share == THIRD else f"random {percent(share)}"
        if any(choice.name == name for choice in known):
            name += f" for {operator or phase}"
        draw = partial(_drawn, values, share, self.config.seed)
        found.append(Choice(name, "control", draw, phase, like=like))
        return name

    def _added(self, found: list[Choice]) -> list[Choice]:
        self.all += found
        return found


def percent(share: float) -> str:
    """Write a share in the name of a row: ``16.7 %``."""
    return f"{100 * share:.3g} %"


def _always(places: Places, seed: int) -> Places:
    return places


def _drawn(values: Floats, share: float, start: int, seed: int) -> Places:
    """Another random choice for every seed, so that the row's interval covers the choice."""
    return pools.random_share(values, share, 1000 * start + seed)
