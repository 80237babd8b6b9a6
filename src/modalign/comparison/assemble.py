"""Combine the results of all jobs into a :class:`Comparison`: intervals, differences, recommendation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.comparison.accuracies import Asked, add_accuracies, untrained
from modalign.comparison.config import CompareConfig
from modalign.comparison.hallucination import MAJORITY, hallucination, yes_no_questions
from modalign.comparison.job import JobResult, Spent, load_scores
from modalign.comparison.metrics import EXACT, EXACT_MATCH, Metric
from modalign.comparison.planning import plan
from modalign.comparison.published import check
from modalign.comparison.recommendation import (
    Cost,
    against_bars,
    checked,
    rank_by_validation,
    recommend,
    what_to_change,
)
from modalign.comparison.results import (
    Comparison,
    Hallucination,
    MethodResult,
    ReferenceRow,
    SeedRun,
)
from modalign.comparison.setting import setting_of
from modalign.comparison.what_if import what_if
from modalign.data.supervision import Sample
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.pairs import Difference, compare_all, compare_with
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.training.budget import Budget
from modalign.training.methods import WITHOUT_STAGE_ONE, Method, method_key
from modalign.training.splits import Splits
from modalign.training.trials import TRIAL_STEPS, trial_share


@dataclass
class Gathered:
    """The outputs of all jobs.

    Attributes:
        splits: the data.
        results: of all trainings.
        runs: folder of a method's and seed's job.
        metric: what answers were judged by.
    """

    splits: Splits
    results: list[JobResult]
    runs: Path
    metric: Metric = EXACT_MATCH

    def of(self, method: str) -> list[JobResult]:
        """Return a method's successful trainings by seed, each charged with the learning-rate search."""
        found = [r for r in self.results if r.method == method and r.failure is None]
        found.sort(key=lambda result: result.seed)
        return [result if result.trials else _charged(result, found[0].search) for result in found]

    def failed(self, method: str) -> list[JobResult]:
        """Trainings of a method that failed, by seed."""
        found = [r for r in self.results if r.method == method and r.failure is not None]
        return sorted(found, key=lambda result: result.seed)

    def scores(self, method: str, name: str) -> np.ndarray:
        """Return (S, n) of one kind of answers, or an empty array."""
        folders = [self.runs / method_key(method) / f"seed-{r.seed}" for r in self.of(method)]
        rows = [load_scores(folder).get(name) for folder in folders]
        return np.array([row for row in rows if row is not None], dtype=float)


def _charged(result: JobResult, search: Spent) -> JobResult:
    return result.model_copy(
        update={
            "samples": result.samples + search.samples,
            "seconds": result.seconds + search.seconds,
            "flops": result.flops + search.flops,
        }
    )


def seen_in_training(judged: Sequence[Sample], train: Sequence[Sample]) -> np.ndarray:
    """Return (n,) False for questions of skills absent from training, which measure transfer."""
    known = {sample.record.skill for sample in train}
    seen = np.array([sample.record.skill in known for sample in judged], dtype=bool)
    return (
        seen if seen.any() else ~seen
    )  # skills named only in the evaluation data are all ordinary


def groups_of(samples: Sequence[Sample]) -> list[str | None]:
    """Label questions by image; they are resampled together."""
    return [
        sample.record.group or (sample.media[0].label if sample.media else None)
        for sample in samples
    ]


@dataclass(frozen=True)
class Choice:
    """The inputs of the recommendation, from validation data only.

    Attributes:
        answers: candidate -> (S, n) right answers.
        costs: candidate -> its cost.
        against: candidates minus what they must beat.
        groups: (n,) questions that are redrawn together.
    """

    answers: dict[str, np.ndarray]
    costs: dict[str, Cost]
    against: list[Difference]
    groups: list[str | None]

    @property
    def learnt(self) -> bool:
        """Whether any candidate beats what needs no training."""
        return any(pair.verdict == "first" for pair in self.against)

    def drawn(self) -> Replicates:
        """Replicates of the candidates' accuracy; where nothing trains, another training is the same again."""
        fixed = {name for name, cost in self.costs.items() if not cost.trainable_parameters}
        return hierarchical_bootstrap(self.answers, groups=self.groups, fixed=fixed)


def candidates(gathered: Gathered, methods: Sequence[Method]) -> list[str]:
    """Methods that may be recommended: no control, and not trained once where others have two trainings."""
    runs = {m.name: gathered.of(m.name) for m in methods if not m.control}
    least = min(2, max(map(len, runs.values()), default=0))
    return [
        name
        for name, own in runs.items()
        if own and (len(own) >= least or not any(own[0].trainable.values()))
    ]


def choice(gathered: Gathered, methods: Sequence[Method]) -> Choice:
    """Collect the inputs of the recommendation."""
    names, groups = candidates(gathered, methods), groups_of(gathered.splits.val)
    controls = [method.name for method in methods if method.control and gathered.of(method.name)]
    costed = {m.name: _costed(gathered, m) for m in methods if m.name in names}
    answers = {name: gathered.scores(name, "val") for name in names}
    bars = {name: _bars(gathered, costed[name], controls) for name in names}
    return Choice(
        answers,
        {name: _cost(costed[name]) for name in names},
        against_bars(answers, bars, groups=groups) if names else [],
        groups,
    )


def assemble(gathered: Gathered, config: CompareConfig, methods: Sequence[Method]) -> Comparison:
    """Build the comparison from the jobs' results.

    Ranking and recommendation come from validation answers; evaluation answers are only reported.
    """
    splits = gathered.splits
    judged = splits.evaluation or splits.val
    kind = "eval" if splits.evaluation else "val"
    working = [method.name for method in methods if gathered.of(method.name)]
    results = {method.name: _method(gathered, method, judged, kind) for method in methods}
    trained = seen_in_training(judged, splits.train)
    finished = {name: results[name] for name in working}
    add_accuracies(finished, gathered.scores, Asked(judged, groups_of(judged), trained, kind))
    means = {name: float(gathered.scores(name, "val").mean()) for name in working}
    for rank, name in enumerate(rank_by_validation(means), start=1):
        results[name].rank = rank
    setting = setting_of(config, splits, gathered.results)
    recommendation, found = None, choice(gathered, methods)
    if found.answers:
        for name in found.answers:
            results[name].candidate = True
        recommendation = recommend(
            found.answers, found.costs, drawn=found.drawn(), measure=gathered.metric.measure
        )
        advice = what_to_change(results[recommendation.best], setting, gathered.runs.parent)
        recommendation = checked(recommendation, found.against, advice)
    planned = None
    if config.plan_for is not None:
        known = (
            hierarchical_bootstrap(found.answers, groups=groups_of(splits.val))
            if found.answers
            else None
        )
        planned = plan(list(results.values()), known, config.budget, config.plan_for)
    correct = {name: gathered.scores(name, kind)[:, trained] for name in working}
    fixed = untrained(finished)
    pairs = compare_all(correct, groups=_take(groups_of(judged), trained), fixed=fixed)
    ordered = sorted(results.values(), key=lambda method: method.rank or len(results) + 1)
    return Comparison(
        methods=ordered,
        recommendation=recommendation,
        references=references(splits.train, judged, gathered.metric),
        differences=pairs,
        hallucination=_hallucination(gathered, working, judged, kind, fixed),
        plan=planned,
        what_if=what_if(ordered, planned) if recommendation and recommendation.method else None,
        contradictions=check(ordered, pairs, config.training.llm),
        examples=[],
        setting=setting,
        notes=[
            *_against_majority(gathered, working, judged, kind, fixed),
            *_notes(splits, ordered, config),
        ],
    )


def _hallucination(
    gathered: Gathered,
    working: Sequence[str],
    judged: Sequence[Sample],
    kind: str,
    fixed: Collection[str],
) -> Hallucination | None:
    """Questions of yes and no, where the evaluation data have them."""
    seen = seen_in_training(judged, gathered.splits.train)
    questions = yes_no_questions(judged, groups_of(judged), seen)
    if questions is None or kind != "eval" or not working or gathered.metric.name != EXACT:
        return None
    asked = questions.places
    majority = gathered.metric.majority(gathered.splits.train, [judged[place] for place in asked])
    correct = {name: gathered.scores(name, kind)[:, asked] for name in working}
    said_yes = {name: gathered.scores(name, "yes")[:, asked] for name in working}
    return hallucination(questions, correct, said_yes, np.array(majority), fixed)


def _bars(
    gathered: Gathered, method: MethodResult, controls: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what a method must beat on validation: row -> (n,) share of right answers per question."""
    train, val = gathered.splits.train, gathered.splits.val
    bars = {
        "chance": np.array(gathered.metric.chance(train, val)),
        MAJORITY: np.array(gathered.metric.majority(train, val)),
        **{name: gathered.scores(name, "val").mean(axis=0) for name in controls},
    }
    untrained = gathered.scores(method.name, "untrained_val")
    if method.trainable_parameters and len(untrained):
        bars["the untrained model"] = untrained.mean(axis=0)
    return bars


def _take(values: Sequence[str | None], mask: np.ndarray) -> list[str | None]:
    return [value for value, kept in zip(values, mask, strict=True) if kept]


def _cost(result: MethodResult) -> Cost:
    return Cost(
        trainable_parameters=result.trainable_parameters or 0,
        tokens=result.tokens or 0,
        flops=result.flops or 0.0,
        inference_flops=result.inference_flops,
        seconds=result.seconds,
        serving=result.serving,
    )


def _costed(gathered: Gathered, method: Method) -> MethodResult:
    """Describe a method and its costs."""
    cls = method.facts
    base = MethodResult(
        name=method.name,
        family=method.family,
        group=method.group,
        variant=method.variant,
        enters=cls.enters,
        papers=list(cls.papers),
    )
    if runs := gathered.of(method.name):
        _add_costs(base, runs)
    return base


def _method(
    gathered: Gathered, method: Method, judged: Sequence[Sample], kind: str
) -> MethodResult:
    base, runs, failed = (
        _costed(gathered, method),
        gathered.of(method.name),
        gathered.failed(method.name),
    )
    if not runs:
        base.status = "failed"
        base.failure = failed[0].failure if failed else "it was not run"
        return base
    base.seeds = [
        _seed_run(gathered, method.name, index, run, kind, judged) for index, run in enumerate(runs)
    ]
    if failed:
        base.failure = f"seed {failed[0].seed} failed: {failed[0].failure}"
    return base


def _add_costs(base: MethodResult, runs: Sequence[JobResult]) -> None:
    first = runs[0]
    base.parameters, base.trainable = first.parameters, first.trainable
    base.trainable_parameters = sum(first.trainable.values())
    base.tokens = first.tokens
    base.flops = float(np.mean([run.flops for run in runs]))
    base.inference_flops = first.inference_flops
    base.seconds = float(np.mean([run.seconds for run in runs]))
    base.peak_memory = max((run.peak_memory for run in runs if run.peak_memory), default=None)
    known = [run.time_to_first_answer for run in runs if run.time_to_first_answer]
    base.time_to_first_answer = float(np.median(known)) if known else None
    rates = [run.mir for run in runs if run.mir is not None]
    base.mir = float(np.mean(rates)) if rates else None
    base.diagnostics = {
        name: float(np.mean([run.diagnostics[name] for run in runs]))
        for name in first.diagnostics
        if all(name in run.diagnostics for run in runs)
    }
    base.untrained_loss = first.untrained_loss
    base.learning_rate = first.learning_rate
    base.trials = first.trials
    base.serving, base.gateway = first.export_target, first.gateway
    base.served_by = first.served_by


def _seed_run(
    gathered: Gathered, name: str, index: int, run: JobResult, kind: str, judged: Sequence[Sample]
) -> SeedRun:
    trained = seen_in_training(judged, gathered.splits.train)
    return SeedRun(
        seed=run.seed,
        accuracy=float(gathered.scores(name, kind)[index, trained].mean()),
        val_loss=run.val_loss,
        val_accuracy=float(gathered.scores(name, "val")[index].mean()),
        samples=run.samples,
        seconds=run.seconds,
        flops=run.flops,
        curve=run.curve,
        weights=run.weights,
        answers=run.answers,
    )


def references(
    train: Sequence[Sample], judged: Sequence[Sample], metric: Metric
) -> list[ReferenceRow]:
    """Chance, and the training data's most frequent answer."""
    known = seen_in_training(judged, train)
    kept = [sample for sample, seen in zip(judged, known, strict=True) if seen]
    skills = [sample.record.skill or "" for sample in kept]
    rows = {"chance": metric.chance(train, kept), MAJORITY: metric.majority(train, kept)}
    return [_reference(name, values, skills) for name, values in rows.items()]


def _reference(name: str, values: Sequence[float], skills: Sequence[str]) -> ReferenceRow:
    by_skill: dict[str, list[float]] = defaultdict(list)
    for value, skill in zip(values, skills, strict=True):
        by_skill[skill].append(value)
    return ReferenceRow(
        name=name,
        accuracy=_reference_interval(values, name),
        skills={k: _reference_interval(v, name) for k, v in sorted(by_skill.items()) if k},
    )


def _reference_interval(values: Sequence[float], name: str) -> Estimate:
    if name == "chance":  # known exactly, not estimated
        return exactly(float(np.mean(values)), len(values), over="questions")
    return estimate_means({name: np.asarray(values)[None]}, fixed={name})[name]


def _against_majority(
    gathered: Gathered,
    working: Sequence[str],
    judged: Sequence[Sample],
    kind: str,
    fixed: Collection[str],
) -> list[str]:
    """Return a note on methods not better than always giving the most frequent answer."""
    seen = seen_in_training(judged, gathered.splits.train)
    kept = [sample for sample, known in zip(judged, seen, strict=True) if known]
    majority = np.array(gathered.metric.majority(gathered.splits.train, kept))
    groups = groups_of(kept)
    correct = {name: gathered.scores(name, kind)[:, seen] for name in working}
    pairs = compare_with(MAJORITY, majority, correct, groups=groups, fixed=fixed) if correct else []
    behind = [pair.first for pair in pairs if pair.verdict != "first"]
    if not behind:
        return []
    who = "No method" if len(behind) == len(working) else "Not every method"
    return [
        f"{who} is better than always giving the training data's most frequent answer, which reaches "
        f"{majority.mean():.1%}: no difference was found, or a worse figure, for {', '.join(behind)}."
    ]


def _on_trainings(methods: Sequence[MethodResult]) -> list[str]:
    """Return notes on intervals that do not fully cover other trainings."""
    known = {m.name: m.accuracy_interval for m in methods if m.accuracy_interval is not None}
    once = [name for name, found in known.items() if found.trainings == 1]
    if any(known[name].of_questions_alone for name in once):
        return [
            "No method was trained twice: nothing is known of the spread between trainings, and every interval, "
            "difference and confidence speaks of other questions alone. Train twice or more (--seeds 2)."
        ]
    if not once:
        return []
    return [
        f"Trained once, and taken to vary from training to training as the others do: {', '.join(once)}."
    ]


def _notes(splits: Splits, methods: Sequence[MethodResult], config: CompareConfig) -> list[str]:
    notes = list(splits.notes)
    if config.metric != EXACT:
        notes.append(
            f"Answers are judged by {Metric.named(config.metric).words} (--metric {config.metric}): what is "
            "called accuracy is its mean, 0 to 1. Learning curves are of exact match."
        )
    tried = trial_share(Budget.parse(config.budget), config.training.batch_size)
    notes.append(
        (
            "Learning-rate trials (a quarter of the budget) are run before a method's first training and charged "
            "to each"
            if tried
            else "The given learning rates were taken untried: the budget is too small for trials of "
            f"{TRIAL_STEPS} steps each"
        )
        + "; the encoder's features are computed once and shared, and charged to no method."
    )
    notes += _on_trainings(methods)
    if without := [m.name for m in methods if WITHOUT_STAGE_ONE in m.name]:
        notes.append(f"Without the connector's own pre-training: {', '.join(without)}.")
    return notes
