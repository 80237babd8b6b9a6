"""From the trainings of all rows to figures with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modalign.data.supervision import Sample
from modalign.mixtures.config import Metric
from modalign.mixtures.pools import Places
from modalign.mixtures.probe_results import EVERYTHING, ORACLE, RANDOM, Kind, Phase, Row
from modalign.mixtures.trials import Trained
from modalign.numbers.bootstrap import Floats
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference, differences, resamples_for
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import hierarchical_bootstrap

UNITS: dict[Metric, tuple[str, str]] = {  # of a figure, and of a difference
    "loss": ("nats per token", "nats per token"),
    "accuracy": ("share", "difference of shares"),
}


@dataclass(eq=False)
class Choice:
    """A row: which records it trains on.

    Attributes:
        name, kind, phase, operators, control: see :class:`modalign.mixtures.probe_results.Row`.
        places: seed -> places of its records.
        like: of a control: its share, and which records have a value.
    """

    name: str
    kind: Kind
    places: Callable[[int], Places]
    phase: Phase = "pools"
    operators: dict[str, str] = field(default_factory=dict)
    control: str | None = None
    like: tuple[float, bytes] | None = None


@dataclass(frozen=True)
class Judgement:
    """All rows on one set of held-out records.

    Attributes:
        metric: what they are judged by.
        drawn: replicates of all rows; larger is better.
        values: row -> (S, n).
        candidates: every candidate minus no filter.
        controls: every candidate minus the random row of its size.
        references: the oracle, and the random third, minus no filter; the oracle minus the random third.
    """

    metric: Metric
    drawn: Replicates
    values: Mapping[str, Floats]
    candidates: list[Difference]
    controls: list[Difference]
    references: list[Difference]

    @property
    def better(self) -> list[str]:
        """Return the candidates that were found better than no filter."""
        return [each.first for each in self.candidates if each.verdict == "first"]

    def found(self, name: str) -> bool:
        """Whether a row was found better than no filter."""
        return name in self.better

    def value(self, name: str) -> float:
        """Return a row's figure, the larger the better."""
        return float(self.values[name].mean())

    def against(self, name: str) -> Difference:
        """Return a candidate's difference from no filter, corrected with all others."""
        return next(each for each in self.candidates if each.first == name)

    def alone(self, name: str) -> Difference:
        """Return a row's difference from no filter as the only one that is asked for."""
        pairs = [(name, EVERYTHING)]
        return differences(self.drawn, pairs, over="records", unit=UNITS[self.metric][1])[0]

    def figure(self, name: str) -> Estimate:
        """Return a row's figure as it is shown: a loss is positive."""
        found = self.drawn.estimate(name, unit=UNITS[self.metric][0]).model_copy(
            update={"over": "records"}
        )
        return negated(found) if self.metric == "loss" else found

    def seeds(self, name: str) -> list[float]:
        """Return each training's figure as it is shown."""
        sign = -1 if self.metric == "loss" else 1
        return [float(sign * value) for value in self.values[name].mean(axis=1)]

    def row(
        self,
        choice: Choice,
        train: Sequence[Sample],
        truth: np.ndarray | None,
        trainings: Sequence[Trained],
        test: Judgement | None,
    ) -> Row:
        """Return a row of the report."""
        places, count = choice.places(0), trainings[0].records
        return Row(
            name=choice.name,
            kind=choice.kind,
            phase=choice.phase,
            operators=choice.operators,
            control=choice.control,
            share=count / len(train),
            records=count,
            passes=float(np.mean([t.samples for t in trainings])) / count if count else 0.0,
            good=float(truth[places].mean()) if truth is not None and count else None,
            figure=self.figure(choice.name),
            seeds=self.seeds(choice.name),
            test=test.figure(choice.name) if test else None,
        )


def judged(
    choices: Sequence[Choice],
    trainings: Mapping[str, Sequence[Trained]],
    held: str,
    metric: Metric,
    groups: Sequence[str],
    fixed: Collection[str],
) -> Judgement:
    """Compare all rows on one set of held-out records.

    Args:
        choices: the rows.
        trainings: row -> its trainings.
        held: name of the set.
        metric: what is judged by.
        groups: (n,) labels of records resampled together.
        fixed: rows without training.
    """
    values = {
        c.name: np.stack([t.scored[held].values(metric) for t in trainings[c.name]])
        for c in choices
    }
    drawn = hierarchical_bootstrap(
        values, groups=groups, resamples=resamples_for(len(values)), fixed=fixed
    )
    unit = UNITS[metric][1]
    candidates = [c for c in choices if c.kind == "candidate"]
    references = [
        pair
        for pair in ((ORACLE, EVERYTHING), (RANDOM, EVERYTHING), (ORACLE, RANDOM))
        if values.keys() >= set(pair)
    ]

    def compared(pairs: Sequence[tuple[str, str]]) -> list[Difference]:
        return differences(drawn, pairs, over="records", unit=unit)

    return Judgement(
        metric,
        drawn,
        values,
        compared([(c.name, EVERYTHING) for c in candidates]),
        compared([(c.name, c.control) for c in candidates if c.control]),
        compared(references),
    )


def negated(found: Estimate) -> Estimate:
    """Return the estimate of the opposite number."""
    return found.model_copy(update={"value": -found.value, "low": -found.high, "high": -found.low})
