"""Trials: probe edits are written with certain settings, and what the model then says is scored.

A trial is a method's own solution on the probes, with the key statistics of the unedited model; it does
what ``edit run`` does, without approximation. Values that several trials share are optimised once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import BaseModel

from modalign.configuration import validated
from modalign.editing.benchmarks.rows import EditRow, Kind
from modalign.editing.benchmarks.scores import score_edits
from modalign.editing.computation import Computation, KeyStatistics, Plan
from modalign.editing.engine.keys import read_outputs
from modalign.editing.engine.solve import SolveError
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.engine.store import Hashes
from modalign.editing.engine.values import ValueNotFiniteError
from modalign.editing.engine.weights import changing
from modalign.editing.layers.probes import Probes
from modalign.editing.methods.base import ValueMethod

KINDS: tuple[Kind, ...] = ("rewrite", "paraphrase", "neighbour")


class Trial(BaseModel):
    """How certain settings did on the probes, in percent.

    Attributes:
        settings: fields of the method's configuration.
        probes: how many facts were written.
        target, paraphrase: how clearly the new answer won after the prompts and after other wordings;
            half of it is its probability against the old answer's, half whether it is said.
        neighbour: the same for the old answers about other subjects.
        score: harmonic mean of the three.
        failed: why nothing was written; empty otherwise.
    """

    settings: dict[str, Any]
    probes: int
    target: float = 0.0
    paraphrase: float = 0.0
    neighbour: float = 0.0
    score: float = 0.0
    failed: str = ""

    @property
    def layers(self) -> list[int]:
        """The layers it wrote."""
        return list(self.settings["layers"])


@dataclass
class Bench:
    """A model, a method and probes on which settings are tried.

    Attributes:
        spec: the model.
        kind: the method.
        base: settings that every trial starts from.
        fixed: settings that the user chose.
        plan: for the probes; each trial sets its layers.
        statistics: C0 of all layers that may be tried.
        probes: what is written.
        done: the trials so far.
    """

    spec: ModelSpec
    kind: type[ValueMethod]
    base: dict[str, Any]
    fixed: dict[str, Any]
    plan: Plan
    statistics: KeyStatistics
    probes: Probes
    done: list[Trial] = field(default_factory=list)
    _hashes: Hashes = field(default_factory=dict)
    _lengths: dict[tuple[int, Site], float] = field(default_factory=dict)

    def length(self, layer: int, site: Site) -> float:
        """Return the median length of a site's output at the probes' lookup tokens."""
        if (layer, site) not in self._lengths:
            outputs = read_outputs(self.spec, layer, site, self.plan.requests)
            self._lengths[layer, site] = float(outputs.norm(dim=0).median())
        return self._lengths[layer, site]

    def run(self, settings: dict[str, Any], probes: int | None = None) -> Trial:
        """Write the probes with these settings and score what the model says; the same settings run only once.

        Args:
            settings: fields of the method's configuration; those that the user chose take precedence.
            probes: how many of them; None for all.
        """
        settings = self.base | settings | self.fixed
        count = min(probes or len(self.probes.edits), len(self.probes.edits))
        for each in self.done:
            if each.settings == settings and each.probes == count:
                return each
        trial = self._run(settings, count)
        self.done.append(trial)
        return trial

    def _run(self, settings: dict[str, Any], count: int) -> Trial:
        method = self.kind(validated(self.kind.config_class, settings, self.kind.name))
        trial = Trial(settings=settings, probes=count)
        plan = replace(
            self.plan,
            layers=method.layers(self.spec.depth),
            requests=self.plan.requests[:count],
        )
        with changing(self.spec.model) as weights:
            try:
                method.solve(Computation(plan, self.statistics, weights, self._hashes))
            except (SolveError, ValueNotFiniteError) as error:
                return trial.model_copy(update={"failed": str(error)})
            edits, asking = self.probes.edits[:count], plan.rewriter.asking
            scored = score_edits(self.spec.model, asking, edits, "counterfact")
        parts = {kind: 100 * _mean(scored.rows, kind) for kind in KINDS}
        names = dict(zip(("target", "paraphrase", "neighbour"), parts.values(), strict=True))
        return trial.model_copy(update=names | {"score": _harmonic(list(parts.values()))})


def _mean(rows: Sequence[EditRow], kind: Kind) -> float:
    """Average over the prompts of a kind: half the wanted answer's share of both, half whether it is said."""
    values = []
    for row in rows:
        for prompt in row.prompts:
            if prompt.kind != kind:
                continue
            new, true = prompt.after.target or 0.0, prompt.after.truth or 0.0
            wanted = true if kind == "neighbour" else new
            share = wanted / max(new + true, 1e-300)
            values.append(0.5 * share + 0.5 * float(prompt.after.accuracy == 1.0))
    found = float(np.mean(values)) if values else 1.0
    return found if np.isfinite(found) else 0.0


def _harmonic(values: Sequence[float]) -> float:
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
