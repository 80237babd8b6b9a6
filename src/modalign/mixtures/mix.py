"""``modalign data mix``: which mixture of data sources, ranked by merged experts instead of by training each.

One expert is trained per source and seed, from the same start and under the same budget. A mixture's proxy is the
merge of the experts by its weights, judged on held-out records. The proxy's best mixture is then trained for real,
with others spread over its ranking, to say how far its promises hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.supervision import Sample
from modalign.errors import DataError
from modalign.files import write_atomically
from modalign.memory import return_freed_memory
from modalign.merging.registry import method_named
from modalign.mixtures.assemble import UNITS, negated
from modalign.mixtures.config import MixConfig
from modalign.mixtures.experts import merged, replaced, weights_of
from modalign.mixtures.mix_report import report_of
from modalign.mixtures.mix_results import BY_SIZE, EQUAL, OBJECTIVE, Mixing, Mixture, Source
from modalign.mixtures.reading import Reading, keys_of, without_overlap
from modalign.mixtures.trials import UNTRAINED, Scored, Trained, Trials
from modalign.mixtures.weights import lattice, mixed, named, normalised, spread
from modalign.models.quiet import quietly
from modalign.numbers.bootstrap import Floats
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import Difference, differences, resamples_for
from modalign.numbers.ranking import rank_correlation
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import hierarchical_bootstrap
from modalign.progress import Progress
from modalign.runs import command_line, run_folder
from modalign.strict_json import read_object

TARGET, JUDGING = "val", "eval"
ALIKE = 0.9  # share of a source's records in another one from which the two count as the same


@quietly()
def mix(
    config: MixConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Mixing:
    """Rank mixtures of sources by merged experts, and train the best one.

    Args:
        config: the sources and the model.
        out: folder of the run: ``report.html``, ``report.md``, ``report.json``, ``trainings/``, ``model/``.
        resume: go on with the run in ``out``.
        overwrite: delete the run in ``out``.
        progress: called as it goes.

    Raises:
        UsageError: an invalid configuration.
        DataError: unusable data, or two sources of the same records.
    """
    return_freed_memory()
    configuration = config.model_dump(mode="json")
    with run_folder(out, configuration, resume=resume, overwrite=overwrite) as folder:
        run = _Run(config, out, progress)
        run.read()
        run.notes += run.trials.check()
        folder.begin()
        found = run.run()
        report_of(found).write(out)
        return found


def planned(config: MixConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Return the trainings that mixing makes, without making any.

    Raises:
        UsageError, DataError: see :func:`mix`.
    """
    run = _Run(config, Path(), progress)
    run.read()
    checked = min(config.checked, len(run.several))
    return {
        "records": {name: len(samples) for name, samples in run.sources.items()},
        "held out": {name: len(samples) for name, samples in run.trials.held.items()},
        "budget of a training": str(run.trials.budget),
        "experts": list(run.sources),
        "mixtures ranked by merging them": len(run.mixtures),
        "mixtures trained": checked,
        "seeds": config.seeds,
        "trainings, at most": config.seeds * (len(run.sources) + checked),
        "notes": run.notes,
    }


@dataclass
class _Run:
    config: MixConfig
    out: Path
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    proxies: dict[str, list[dict[str, Scored]]] = field(default_factory=dict)
    trainings: dict[str, list[Trained]] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def read(self) -> None:
        """Read all sources, hold parts out, and leave out what is in both.

        Raises:
            DataError, UsageError: see :func:`mix`.
        """
        c = self.config
        self.method = method_named(c.merge)
        self.options = self.method.checked(c.merge_options)
        reading = Reading(c, self.progress)
        read = {name: reading.read(f"source {name}", path) for name, path in c.sources.items()}
        self.elsewhere = self._elsewhere(read)
        parts = {name: reading.held_out(samples) for name, samples in read.items()}
        held = {name: apart for name, (_, apart) in parts.items()}
        for name, path in ((TARGET, c.data.val), (JUDGING, c.data.eval)):
            if path is not None:
                held[name] = reading.judging(f"data.{name}", path)
        judges = [sample for samples in held.values() for sample in samples]
        self.sources: dict[str, list[Sample]] = {
            name: without_overlap(own, judges, f"held-out records (source {name})", self.notes)
            for name, (own, _) in parts.items()
        }
        self.notes += reading.notes
        everyone = [sample for samples in self.sources.values() for sample in samples]
        budget = c.allowance(len(everyone))
        self.trials = Trials(c, self.out, everyone, held, budget, progress=self.progress)
        names = list(self.sources)
        given = [normalised(each, names) for each in c.mixtures]
        self.mixtures = {named(w): w for w in given or lattice(names, c.parts_of_one)}
        sizes = {name: float(len(samples)) for name, samples in self.sources.items()}
        self.plain = {
            EQUAL: named(normalised(dict.fromkeys(names, 1.0), names)),
            BY_SIZE: named(normalised(sizes, names)),
        }
        for weights in (dict.fromkeys(names, 1.0), sizes):
            own = normalised(weights, names)
            self.mixtures.setdefault(named(own), own)
        for name in names:
            alone = normalised({name: 1.0}, names)
            self.mixtures.setdefault(named(alone), alone)

    def _elsewhere(self, read: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
        """Return how many records of each source are in another one.

        Raises:
            DataError: nearly all of two sources' records are the same.
        """
        keys = {name: keys_of(samples) for name, samples in read.items()}
        for (first, ours), (second, theirs) in combinations(keys.items(), 2):
            common = len(ours & theirs)
            if common >= ALIKE * max(len(ours), len(theirs)):
                raise DataError(
                    f"sources {first} and {second} hold the same records ({common} of {len(ours)} and "
                    f"{len(theirs)}): there is nothing to mix; leave one out"
                )
            if common:
                self.notes.append(f"{common} records are in both {first} and {second}.")
        return {
            name: len(own & set().union(*(keys[other] for other in keys if other != name)))
            for name, own in keys.items()
        }

    @property
    def several(self) -> list[str]:
        """Return the mixtures of more than one source."""
        return [name for name, w in self.mixtures.items() if sum(map(bool, w.values())) > 1]

    # ------------------------------------------------------------------ work

    def run(self) -> Mixing:
        """Train experts, rank mixtures, train the chosen ones, and return what was found."""
        c = self.config
        self.trials.total = c.seeds * (len(self.sources) + 1 + min(c.checked, len(self.several)))
        for seed in range(c.seeds):
            self._experts(seed)
            self._rank(seed)
        proxy = {name: self._values(found) for name, found in self.proxies.items()}
        ranked = sorted(proxy, key=lambda name: -float(proxy[name][OBJECTIVE].mean()))
        checked = self._to_check(ranked)
        for seed in range(c.seeds):
            for name in checked:
                samples = mixed(self.sources, self.mixtures[name], self._length(), (c.seed, seed))
                found = self.trials.trained(f"mixture {name}", samples, seed)
                self.trainings.setdefault(name, []).append(found)
        for name, weights in self.mixtures.items():
            alone = [source for source, weight in weights.items() if weight]
            if len(alone) == 1:
                self.trainings[name] = self.trainings[f"expert {alone[0]}"]
        return self._assembled(ranked, proxy)

    def _experts(self, seed: int) -> None:
        start = self.trials.trained(UNTRAINED, [], seed)
        self.trainings.setdefault(UNTRAINED, []).append(start)
        for name, samples in self.sources.items():
            found = self.trials.trained(f"expert {name}", samples, seed, keep=True)
            self.trainings.setdefault(f"expert {name}", []).append(found)

    def _rank(self, seed: int) -> None:
        """Judge the merge of the experts for every mixture, or read what an earlier run judged."""
        file = self.out / "proxies" / f"seed-{seed}.json"
        kept = read_object(file) if file.exists() else {}
        missing = [name for name in self.mixtures if name not in kept]
        if missing:
            experts = {
                name: weights_of(self.trials.restore(f"expert {name}", seed))
                for name in self.sources
            }
            tuning = self.trials.restart(seed)
            origin = weights_of(tuning)
            file.parent.mkdir(parents=True, exist_ok=True)
            for number, name in enumerate(missing):
                if self.progress:
                    self.progress(f"merging, seed {seed}", number, len(missing))
                made = merged(
                    origin,
                    experts,
                    self.mixtures[name],
                    self.method,
                    self.options,
                    self.config.seed,
                )
                with replaced(tuning, made):
                    told = self.trials.judged(seed)
                kept[name] = {target: each.model_dump() for target, each in told.items()}
                write_atomically(file, json.dumps(kept))
        for name in self.mixtures:
            told = {target: Scored.model_validate(each) for target, each in kept[name].items()}
            self.proxies.setdefault(name, []).append(told)

    def _to_check(self, ranked: Sequence[str]) -> list[str]:
        """Return the mixtures of several sources to train: the best, the plain ones, and others over all ranks."""
        several = [name for name in ranked if name in self.several]
        first = [name for name in (ranked[0], *self.plain.values()) if name in several]
        return spread(several, list(dict.fromkeys(first)), self.config.checked)

    def _length(self) -> int:
        """Return the samples of a training, as far as they are known."""
        budget = self.trials.budget
        return int(budget.amount) if budget.kind == "samples" else len(self.trials.everyone)

    # ------------------------------------------------------------------ figures

    @property
    def targets(self) -> list[str]:
        """Return what figures are of, the objective first."""
        given = [name for name in (*self.sources, TARGET) if name in self.trials.held]
        return [OBJECTIVE, *given]

    def _values(self, told: Sequence[Mapping[str, Scored]]) -> dict[str, Floats]:
        """Return target -> (S, n) figures, the larger the better.

        The objective is ``val``, or the mean over all sources, whose records then count so that every source's
        mean counts alike.
        """
        metric = self.config.metric
        found = {
            target: np.stack([each[target].values(metric) for each in told])
            for target in self.trials.held
        }
        if TARGET in found:
            return {OBJECTIVE: found[TARGET], **found}
        own = [found[name] for name in self.sources]
        whole = sum(each.shape[1] for each in own)
        parts = [each * whole / (len(own) * each.shape[1]) for each in own]
        return {OBJECTIVE: np.concatenate(parts, axis=1), **found}

    def _groups(self, target: str) -> list[str]:
        names = [target]
        if target == OBJECTIVE:
            names = [TARGET] if TARGET in self.trials.held else list(self.sources)
        return [
            f"{name} {sample.record.group or sample.record.id}"
            for name in names
            for sample in self.trials.held[name]
        ]

    def _drawn(self, values: Mapping[str, Floats], target: str) -> Replicates:
        fixed = [UNTRAINED] if self.config.model is not None and UNTRAINED in values else []
        return hierarchical_bootstrap(
            values,
            groups=self._groups(target),
            resamples=resamples_for(min(len(values), 12)),
            fixed=fixed,
        )

    def _figures(self, values: Mapping[str, Floats], target: str) -> dict[str, Estimate]:
        drawn, metric = self._drawn(values, target), self.config.metric
        found = {name: drawn.estimate(name, unit=UNITS[metric][0]) for name in values}
        return {n: negated(e) if metric == "loss" else e for n, e in found.items()}

    def _pairs(
        self, values: Mapping[str, Floats], target: str, pairs: Sequence[tuple[str, str]]
    ) -> list[Difference]:
        if not pairs:
            return []
        own = {name: values[name] for name in dict.fromkeys(n for pair in pairs for n in pair)}
        unit = UNITS[self.config.metric][1]
        return differences(self._drawn(own, target), pairs, over="records", unit=unit)

    def _assembled(self, ranked: list[str], proxy: Mapping[str, dict[str, Floats]]) -> Mixing:
        c, chosen = self.config, ranked[0]
        real = {
            name: self._values([t.scored for t in found]) for name, found in self.trainings.items()
        }
        figures = {
            target: (
                self._figures({n: v[target] for n, v in proxy.items()}, target),
                self._figures({n: v[target] for n, v in real.items()}, target),
            )
            for target in (*self.targets, *([JUDGING] if JUDGING in self.trials.held else []))
        }
        references = self._references(chosen, real)
        pairs = [(chosen, name) for name in references]
        objective = {name: v[OBJECTIVE] for name, v in real.items()}
        promised = {"trained": objective[chosen], "promised": proxy[chosen][OBJECTIVE]}
        test = {name: v[JUDGING] for name, v in real.items() if JUDGING in v}
        checked = [name for name in self.several if name in real]
        return Mixing(
            config=c,
            command=command_line(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            sources=[
                Source(
                    name=name,
                    records=len(samples),
                    held=len(self.trials.held[name]),
                    elsewhere=self.elsewhere[name],
                )
                for name, samples in self.sources.items()
            ],
            targets=self.targets,
            mixtures=[self._mixture(name, chosen, figures, real) for name in ranked],
            untrained={target: figures[target][1][UNTRAINED] for target in self.targets},
            chosen=chosen,
            promise=self._pairs(promised, OBJECTIVE, [("trained", "promised")])[0],
            agreement={
                target: rank_correlation(
                    [proxy[name][target].mean() for name in checked],
                    [real[name][target].mean() for name in checked],
                )
                for target in self.targets
            },
            differences=self._pairs(objective, OBJECTIVE, pairs),
            test=self._pairs(test, JUDGING, pairs) if test else [],
            trainings=c.seeds * (len(self.sources) + len(checked)),
            without=c.seeds * len(self.mixtures),
            notes=list(dict.fromkeys(self.notes)),
        )

    def _references(self, chosen: str, real: Mapping[str, dict[str, Floats]]) -> list[str]:
        """Return the trained mixtures that need no proxy: plain ones, and the best single source."""
        alone = [name for name in self.mixtures if name not in self.several]
        best = max(alone, key=lambda name: float(real[name][OBJECTIVE].mean()))
        names = dict.fromkeys((*self.plain.values(), best))
        return [name for name in names if name in real and name != chosen]

    def _mixture(
        self,
        name: str,
        chosen: str,
        figures: Mapping[str, tuple[dict[str, Estimate], dict[str, Estimate]]],
        real: Mapping[str, Any],
    ) -> Mixture:
        weights = self.mixtures[name]
        alone = [source for source, weight in weights.items() if weight]
        roles = ["chosen"] if name == chosen else []
        roles += [role for role, own in self.plain.items() if own == name]
        roles += [f"{alone[0]} alone"] if len(alone) == 1 else []
        trained = name in real
        return Mixture(
            name=name,
            weights=weights,
            roles=roles,
            proxy={target: figures[target][0][name] for target in self.targets},
            trained={t: figures[t][1][name] for t in self.targets} if trained else {},
            test=figures[JUDGING][1][name] if trained and JUDGING in figures else None,
        )
