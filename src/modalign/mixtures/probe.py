"""``modalign data probe``: is a filter of the data worth it? Pools of the data are trained on, and judged.

First the low, middle and high third of every operator's statistic, under one budget and the same seeds; then the
records that winning operators share; then shares of the best records against random ones of the same size. "No
filter" is a candidate throughout, and is recommended unless a row is found better on held-out records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.readers import write_records
from modalign.data.supervision import Sample
from modalign.errors import DataError, UsageError
from modalign.files import write_atomically
from modalign.memory import return_freed_memory
from modalign.mixtures import pools
from modalign.mixtures.assemble import Choice, Judgement, judged
from modalign.mixtures.choices import Choices
from modalign.mixtures.config import ProbeConfig
from modalign.mixtures.probe_report import report_of
from modalign.mixtures.probe_results import EVERYTHING, RANDOM, Probe, Ranked
from modalign.mixtures.reading import Reading, without_overlap
from modalign.mixtures.statistics import Place, Scorer, asks_model, computed, loads_model
from modalign.mixtures.trials import UNTRAINED, Trained, Trials
from modalign.models.quiet import quietly
from modalign.models.saved import open_composed
from modalign.numbers.bootstrap import Floats
from modalign.numbers.ranking import auroc
from modalign.progress import Progress
from modalign.runs import command_line, run_folder
from modalign.strict_json import read_object

KEPT = "kept.jsonl"
CHOOSING, JUDGING = "choosing", "judging"


@quietly()
def probe(
    config: ProbeConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Probe:
    """Probe data by training on its pools.

    Args:
        config: the probe.
        out: folder of the run: ``report.html``, ``report.md``, ``report.json``, ``trainings/``, ``kept.jsonl``.
        resume: go on with the run in ``out``.
        overwrite: delete the run in ``out``.
        progress: called as it goes.

    Raises:
        UsageError: an invalid configuration.
        DataError: unusable data, an operator whose pools would be empty.
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


def planned(config: ProbeConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Return the trainings that a probe makes, without making any.

    Raises:
        UsageError, DataError: see :func:`probe`.
    """
    run = _Run(config, Path(), progress)
    run.read()
    first = [choice.name for choice in run.choices.references()]
    pooled = [f"{name} {level}" for name in config.operators for level in pools.LEVELS]
    trained = [name for name in (*first, RANDOM, *pooled) if name != UNTRAINED]
    further = _further(config)
    whole = config.seeds * (len(trained) + further)
    return {
        "records": len(run.train),
        "held out": len(run.trials.held[CHOOSING]),
        "budget of a training": str(run.trials.budget),
        "rows": trained,
        "further rows, at most": further,
        "seeds": config.seeds,
        "trainings, at most": whole,
        "notes": run.notes,
    }


def _further(config: ProbeConfig) -> int:
    several = len(config.operators) - 1
    combined = several if config.combine != "never" else 0
    return combined + (2 * len(config.shares) if config.repetition != "never" else 0)


@dataclass
class _Run:
    config: ProbeConfig
    out: Path
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    trainings: dict[str, list[Trained]] = field(default_factory=dict)
    values: dict[str, Floats] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def read(self) -> None:
        """Read, hold out, leave out what is in both, and name the trainings' common terms.

        Raises:
            DataError, UsageError: see :func:`probe`.
        """
        c = self.config
        self.names_model = {name: asks_model(name) for name in c.operators}
        reading = Reading(c, self.progress)
        train = reading.read("the training data", c.data.train)
        if c.data.val is not None:
            choosing = reading.judging("the validation data", c.data.val)
        else:
            train, choosing = reading.held_out(train)
            self.notes.append(
                "No validation data was given: rows are chosen by a part of the training data, which shares its "
                "faults. data.val of records that you trust makes a filter's gain visible."
            )
        held = {CHOOSING: choosing}
        if c.data.eval is not None:
            held[JUDGING] = reading.judging("the evaluation data", c.data.eval)
        for name, what in ((CHOOSING, "the held-out records"), (JUDGING, "the evaluation data")):
            if name in held:
                train = without_overlap(train, held[name], what, self.notes)
        if c.limit is not None and c.limit < len(train):
            drawn = np.random.default_rng((c.seed, 3)).permutation(len(train))[: c.limit]
            train = [train[place] for place in sorted(drawn.tolist())]
        self.notes += reading.notes
        self.train: list[Sample] = train
        self.truth = self._truth()
        budget = c.allowance(len(train))
        self.trials = Trials(c, self.out, train, held, budget, progress=self.progress)
        groups = [sample.record.group or sample.record.id for sample in choosing]
        self.groups = {CHOOSING: groups}
        if JUDGING in held:
            self.groups[JUDGING] = [s.record.group or s.record.id for s in held[JUDGING]]
        self.choices = Choices(c, len(train), self.truth, self.values, self.notes)
        self._compute()
        few = self.config.training.batch_size
        if len(train) // 3 < few:
            self.notes.append(
                f"A third of the {len(train)} records is less than one batch ({few}): pools hardly differ from "
                "single records."
            )

    def _truth(self) -> np.ndarray | None:
        """(n,) bool: which records the truth calls good."""
        if self.config.truth is None:
            return None
        found = []
        for sample in self.train:
            value = sample.record.extra.get(self.config.truth)
            if value not in (True, False, 0, 1, "0", "1", "true", "false", "True", "False"):
                raise DataError(
                    f"{sample.record.source}: the column {self.config.truth!r} holds {value!r}; truth needs true "
                    "or false in every row"
                )
            found.append(str(value).lower() in ("true", "1", "1.0"))
        good = np.array(found)
        if good.all() or not good.any():
            said = "good" if good.all() else "bad"
            raise DataError(
                f"truth: the column {self.config.truth!r} calls all {len(good)} records {said}, so there is "
                "nothing to find; leave truth out"
            )
        return good

    # ------------------------------------------------------------------ phases

    def run(self) -> Probe:
        """Train all phases and return what was found."""
        choices = self.choices
        first = choices.references()
        pooled = len(pools.LEVELS) * len(self.config.operators) + 1
        self.trials.total = self.config.seeds * (len(first) + pooled + _further(self.config))
        self._train(first)
        self._compute(self.out / "statistics.json")
        self._train(choices.thirds())
        self._train(choices.combined(self._judged()))
        self._train(choices.shares(self._judged()))
        return self._assembled(self._judged())

    def _compute(self, file: Path | None = None) -> None:
        """Compute statistics: without a file, those that no model has to be loaded for.

        Args:
            file: keeps what was computed, for a run that is resumed.
        """
        kept = read_object(file) if file and file.exists() else {}
        place = Place(self._scorer, self.config.training.device, self.progress)
        for name in self.config.operators:
            if name in self.values or (file is None and loads_model(name)):
                continue
            if name not in kept:
                values = computed(name, self.train, place)
                kept[name] = [None if np.isnan(value) else value for value in values.tolist()]
                if file is not None:
                    write_atomically(file, json.dumps(kept))
            self.values[name] = np.array(kept[name], dtype=np.float64)
            pools.terciles(self.values[name], name)  # refuses what has no pools
        same = {name: pools.ranking(each).tobytes() for name, each in self.values.items()}
        for number, name in enumerate(same):
            twin = next((n for n in list(same)[:number] if same[n] == same[name]), None)
            if twin is not None:
                self.notes.append(f"{name} ranks these records exactly as {twin} does.")

    def _scorer(self, folder: str | None) -> Scorer:
        """Open a model for statistics: a folder's, the one that is tuned, or the one that no filter trained."""
        folder = folder or self.config.model
        own = self.trials.tuning(0)
        if folder is None:
            own = self.trials.restore(EVERYTHING, 0)
            return Scorer(own.model, own.collator, own.opened.tokenizer, own.device, True)
        opened = open_composed(folder, "the operator's model")
        lacking = {m.modality for sample in self.train for m in sample.media}
        lacking -= {each.modality for each in opened.encoders}
        if lacking:
            raise UsageError(
                f"{folder} takes no {sorted(lacking)[0]}, which the training data holds; give a model that does"
            )
        model = opened.model.float().to(own.device).eval()
        same = opened.tokenizer.get_vocab() == own.opened.tokenizer.get_vocab()
        return Scorer(model, opened.collator(), opened.tokenizer, own.device, same)

    # ------------------------------------------------------------------ trainings

    def _train(self, choices: Sequence[Choice]) -> None:
        """Train every choice under every seed; those of one seed together, since their model is made once."""
        scoring = any(self.names_model.values()) and self.config.model is None
        for seed in range(self.config.seeds):
            for choice in choices:
                places = choice.places(seed)
                keep = scoring and choice.name == EVERYTHING and seed == 0
                found = self.trials.trained(
                    choice.name, [self.train[n] for n in places.tolist()], seed, keep=keep
                )
                self.trainings.setdefault(choice.name, []).append(found)

    def _judged(self, name: str = CHOOSING) -> Judgement:
        fixed = [UNTRAINED] if self.config.model is not None else []
        return judged(
            self.choices.all, self.trainings, name, self.config.metric, self.groups[name], fixed
        )

    # ------------------------------------------------------------------ the result

    def _assembled(self, judgement: Judgement) -> Probe:
        candidates = [c for c in self.choices.all if judgement.found(c.name)]
        best = max(candidates, key=lambda c: judgement.value(c.name), default=None)
        chosen = best.name if best else EVERYTHING
        test = self._judged(JUDGING) if JUDGING in self.groups else None
        return Probe(
            config=self.config,
            command=command_line(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            records=len(self.train),
            held=len(self.trials.held[CHOOSING]),
            chosen=chosen,
            reason=_reason(best, judgement),
            judged=test.alone(chosen) if test and best else None,
            rows=[
                judgement.row(c, self.train, self.truth, self.trainings[c.name], test)
                for c in self.choices.all
            ],
            operators=[self._ranked(name, judgement) for name in self.values],
            candidates=judgement.candidates,
            controls=judgement.controls,
            references=judgement.references,
            kept=self._keep(best),
            notes=list(dict.fromkeys(self.notes)),
        )

    def _ranked(self, name: str, judgement: Judgement) -> Ranked:
        values = self.values[name]
        known = np.isfinite(values)
        own = self.choices.pools_of(name)
        best = max(own, key=lambda c: judgement.value(c.name))
        found = [c for c in own if judgement.found(c.name)]
        finds, kept = None, {}
        if self.truth is not None:
            good, bad = values[known & self.truth], values[known & ~self.truth]
            if len(good) and len(bad):
                finds = auroc(good, bad, seed=self.config.seed)
            kept = {c.operators[name]: float(self.truth[c.places(0)].mean()) for c in own}
        return Ranked(
            name=name,
            records=int(known.sum()),
            quantiles=np.quantile(values[known], (0, 1 / 3, 2 / 3, 1)).tolist(),
            ties=pools.split_ties(values),
            finds=finds,
            kept=kept,
            best=best.operators[name],
            found=max(found, key=lambda c: judgement.value(c.name)).operators[name]
            if found
            else None,
        )

    def _keep(self, best: Choice | None) -> str | None:
        """Write the records of the chosen row."""
        if best is None:
            return None
        records = [self.train[n].record for n in best.places(0).tolist()]
        write_records(records, self.out / KEPT)
        return KEPT


def _reason(best: Choice | None, judgement: Judgement) -> str:
    if best is None:
        return (
            f"No choice of records was found better than all of them: none of {len(judgement.candidates)} "
            "differences is significant after Holm's correction."
        )
    pair = judgement.against(best.name)
    return (
        f"{best.name} has the best figure of the {len(judgement.better)} rows that were found better than no "
        f"filter (corrected p {pair.p_holm:.3f}, {len(judgement.candidates)} candidates)."
    )
