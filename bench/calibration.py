"""Do a comparison's intervals and its confidence hold for other trainings? Measured on real trainings.

The demo's twelve methods are trained on the starter under ten seeds each, every seed with its own learning-rate
trials: 120 trainings, about ten minutes of one core per seed. Finished trainings are kept and not repeated.

    python -m bench.calibration train [--seeds 10] [--out runs/calibration]
    python -m bench.calibration tables [--draws 200] [--out runs/calibration] [--write]
    python -m bench.calibration simulate [--worlds 40] [--out runs/calibration-worlds] [--write]

``tables`` repeatedly draws comparisons from the trainings: two (or ``--trainings``) of every method, with
questions resampled by image. What each would say is checked against the trainings that it did not use:

* (a) how often the 95 % interval of an accuracy holds the mean of the *other* trainings. Those are few, too: with
  S trainings in the interval and K others, an interval that is right for the truth must have its part between
  trainings lengthened by sqrt(1 + S / K) to hold their mean as often. Both are counted;
* (b) of the pairs called different, how many are reversed over all trainings;
* (c) how often another comparison, of other trainings and questions, picks the same method, by stated confidence.

A handful of trainings allows few comparisons that share none: six allow three of two each. So (a) and (c) are
rough, however many comparisons are drawn. ``simulate`` therefore does the same in worlds whose truth is known:
twelve methods each, the better ones close together (they share a ceiling), with spreads between trainings that are
alike, tenfold apart, or tenfold apart with two modes (some trainings take off in time and some do not) among the
widest third.

``--write`` puts the tables into docs/report.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from bench.readme import ROOT, write_block
from modalign.cache import cache_directory
from modalign.cli.console import quiet_libraries, stdout
from modalign.comparison.assemble import groups_of
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import Job, JobResult, load_scores, run_job
from modalign.comparison.prepared import Prepared, StoredData, prepare
from modalign.comparison.recommendation import Cost, recommend
from modalign.files import write_atomically
from modalign.numbers.bootstrap import RESAMPLES, Floats, cluster_ids
from modalign.numbers.pairs import differences, resamples_for
from modalign.numbers.replicates import Replicates
from modalign.numbers.trainings import hierarchical_bootstrap
from modalign.pages.markdown import table
from modalign.runs import run_folder

SEEDS = 10
START, END = (
    "<!-- written by `python -m bench.calibration tables --write` -->",
    "<!-- end of it -->",
)
WORLDS_START, WORLDS_END = (
    "<!-- written by `python -m bench.calibration simulate --write` -->",
    "<!-- end of the worlds -->",
)
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def configuration(**changes: object) -> CompareConfig:
    """Return the demo's configuration, with one thread per training."""
    return load_config(None, {"jobs": os.cpu_count() or 1, **changes})[0]


def prepared(out: Path, config: CompareConfig) -> Prepared:
    """Write the data that the trainings read, unless they are written already."""
    with run_folder(out, config.model_dump(mode="json"), resume=True) as folder:
        found = prepare(config, folder.path, cache_directory())
        folder.begin()
        found.store()
    return found


def train(out: Path, seeds: int) -> None:
    """Train what is missing: all methods under one seed before the next, so that an unfinished set is usable."""
    given = prepared(out, configuration())
    jobs = [Job(out, method.name, seed) for seed in range(seeds) for method in given.methods]
    missing = [job for job in jobs if job.result() is None]
    torch.set_num_threads(1)
    started = time.monotonic()
    for done, job in enumerate(missing, start=1):
        result = run_job(out, job.key, filled=True, own_trials=True)
        left = (time.monotonic() - started) / done * (len(missing) - done)
        reached = load_scores(job.run)["val"].mean()
        stdout.print(
            f"{len(jobs) - len(missing) + done} of {len(jobs)}: {job.name}: {reached:.1%} on validation, "
            f"rate x{result.factor:.3g}, {result.seconds:.0f} s; about {left / 60:.0f} min left",
            highlight=False,
        )


@dataclass(frozen=True)
class Questions:
    """Answers of all trainings to one set of questions.

    Attributes:
        answers: method -> (T, n) right answers.
        groups: (n,) the image of each question.
    """

    answers: dict[str, Floats]
    groups: Sequence[str | None]

    def redrawn(
        self, rng: np.random.Generator, chosen: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Floats], list[str]]:
        """Return the chosen trainings' answers to questions about resampled images, each counted as new."""
        clusters = cluster_ids(self.groups, len(self.groups))
        members = np.split(np.argsort(clusters, kind="stable"), np.bincount(clusters).cumsum()[:-1])
        drawn = rng.integers(len(members), size=len(members))
        places = np.concatenate([members[each] for each in drawn])
        labels = [str(new) for new, each in enumerate(drawn) for _ in members[each]]
        return {name: self.answers[name][own][:, places] for name, own in chosen.items()}, labels


@dataclass(frozen=True)
class Trained:
    """Many trainings of every method, taken as the truth.

    Attributes:
        validation, evaluation: their answers.
        costs: method -> what it costs.
    """

    validation: Questions
    evaluation: Questions
    costs: dict[str, Cost]

    @property
    def count(self) -> int:
        """Trainings of every method."""
        return min(len(answers) for answers in self.evaluation.answers.values())

    def some(
        self, rng: np.random.Generator, trainings: int, within: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Draw trainings of every method, without replacement."""
        names = self.evaluation.answers
        return {name: rng.choice(within, trainings, replace=False) for name in names}


def trained(out: Path) -> Trained:
    """Read what has been trained so far, for the seeds that all methods have."""
    config, data = configuration(), StoredData.read(out)
    names = [method.name for method in config.resolved()]
    seeds = 0
    while all(Job(out, name, seeds).result() for name in names):
        seeds += 1
    if seeds < 2:
        raise SystemExit(f"{out} has {seeds} seeds of all methods; two are needed at least")
    runs = {name: [Job(out, name, seed).run for seed in range(seeds)] for name in names}

    def answered(kind: str, samples: Sequence[object]) -> Questions:
        scores = {
            name: np.array([load_scores(run)[kind] for run in own], dtype=float)
            for name, own in runs.items()
        }
        return Questions(scores, groups_of(samples))  # type: ignore[arg-type]

    first = {name: Job(out, name, 0).result() for name in names}
    return Trained(
        answered("val", data.val),
        answered("eval", data.evaluation),
        {name: _cost(result) for name, result in first.items() if result is not None},
    )


def _cost(result: JobResult) -> Cost:
    return Cost(
        sum(result.trainable.values()),
        result.tokens,
        result.flops,
        result.inference_flops,
        result.seconds,
        result.export_target,
    )


@dataclass
class Found:
    """The outcome of many drawn comparisons.

    Attributes:
        draws: number of comparisons.
        misses: method -> intervals wholly below and wholly above the mean of the other trainings.
        allowed: method -> intervals that miss it even when they allow for its own error.
        reaches: method -> half lengths of its intervals.
        different: pairs called different, and how many of them are reversed.
        picks: confidence of a choice, and whether another comparison made it again.
    """

    draws: int = 0
    misses: dict[str, list[int]] = field(default_factory=dict)
    allowed: dict[str, int] = field(default_factory=dict)
    reaches: dict[str, list[float]] = field(default_factory=dict)
    different: list[int] = field(default_factory=lambda: [0, 0])
    picks: list[tuple[float, bool]] = field(default_factory=list)

    def covered(self, name: str) -> float:
        """Return share of a method's intervals that hold the mean of the others."""
        return 1 - sum(self.misses[name]) / self.draws

    def allowing(self, name: str) -> float:
        """Return the same share for intervals that allow for the error of that mean."""
        return 1 - self.allowed[name] / self.draws

    def add(self, other: Found) -> None:
        """Add another's comparisons to these."""
        self.draws += other.draws
        for name, (below, above) in other.misses.items():
            own = self.misses.setdefault(name, [0, 0])
            self.misses[name] = [own[0] + below, own[1] + above]
            self.allowed[name] = self.allowed.get(name, 0) + other.allowed[name]
            self.reaches.setdefault(name, []).extend(other.reaches[name])
        self.different = [
            one + two for one, two in zip(self.different, other.different, strict=True)
        ]
        self.picks += other.picks

    @property
    def reversed(self) -> float:
        """Share of pairs called different that are reversed over all trainings."""
        return self.different[1] / max(self.different[0], 1)

    def bins(self) -> list[tuple[float, float, int]]:
        """Return mean stated confidence, share picked again and number, for each bin that is not empty."""
        stated = np.array([confidence for confidence, _ in self.picks])
        again = np.array([same for _, same in self.picks])
        places = np.clip(np.digitize(stated, BINS) - 1, 0, len(BINS) - 2)
        return [
            (float(stated[own].mean()), float(again[own].mean()), int(own.sum()))
            for place in range(len(BINS) - 1)
            if (own := places == place).any()
        ]


def calibrate(given: Trained, trainings: int, draws: int, seed: int = 0) -> Found:
    """Draw comparisons with ``trainings`` of every method, and check them against the others."""
    rng, found = np.random.default_rng(seed), Found(draws)
    whole = {
        name: float(own[: given.count].mean()) for name, own in given.evaluation.answers.items()
    }
    every = np.arange(given.count)
    for _ in range(draws):
        halves = np.array_split(rng.permutation(every), 2)
        apart = min(map(len, halves)) >= trainings  # two comparisons without a training in common
        chosen = given.some(rng, trainings, halves[0] if apart else every)
        other = given.some(rng, trainings, halves[1] if apart else every)
        _judge_intervals(found, given, chosen, whole, rng)
        confidence, method = _choice(given, chosen, rng)
        if confidence is not None:
            found.picks.append((confidence, _choice(given, other, rng)[1] == method))
    return found


def _judge_intervals(
    found: Found,
    given: Trained,
    chosen: Mapping[str, np.ndarray],
    whole: Mapping[str, float],
    rng: np.random.Generator,
) -> None:
    answers, groups = given.evaluation.redrawn(rng, chosen)
    enough = resamples_for(len(answers))
    drawn = hierarchical_bootstrap(answers, groups=groups, resamples=enough)
    for name, own in chosen.items():
        interval = drawn.estimate(name)
        others = np.delete(given.evaluation.answers[name][: given.count], own, axis=0)
        misses = found.misses.setdefault(name, [0, 0])
        misses[0] += bool(interval.high < others.mean())
        misses[1] += bool(interval.low > others.mean())
        wider = _longer(drawn, name, 1 + len(own) / len(others)).estimate(name)
        held = wider.low <= others.mean() <= wider.high
        found.allowed[name] = found.allowed.get(name, 0) + (not held)
        found.reaches.setdefault(name, []).append((interval.high - interval.low) / 2)
    for pair in differences(drawn, combinations(answers, 2)):
        if pair.verdict in ("first", "second"):
            sign = 1 if pair.verdict == "first" else -1
            found.different[0] += 1
            found.different[1] += bool(sign * (whole[pair.first] - whole[pair.second]) < 0)


def _longer(drawn: Replicates, name: str, times: float) -> Replicates:
    """Multiply a method's variance between trainings."""
    part = drawn.parts[name]
    if part.spread is None:
        return drawn
    spread = replace(part.spread, variance=times * part.spread.variance)
    return replace(drawn, parts={name: replace(part, luck=times**0.5 * part.luck, spread=spread)})


def _choice(
    given: Trained, chosen: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[float | None, str | None]:
    """Return the confidence of a drawn comparison, and what it picks."""
    answers, groups = given.validation.redrawn(rng, chosen)
    found = recommend(answers, given.costs, groups=groups, resamples=RESAMPLES // 2)
    return found.confidence, found.method


def tables(given: Trained, found: Mapping[int, Found]) -> str:
    """Write the tables in Markdown; ``found`` is by the number of trainings in a comparison."""
    counts = list(found)
    rows = []
    for name, own in given.evaluation.answers.items():
        means = own[: given.count].mean(axis=1) * 100
        row = [name, f"{means.mean():.1f}", f"{means.std(ddof=1):.1f}"]
        for each in found.values():
            below, above = (miss / each.draws * 100 for miss in each.misses[name])
            row += [
                f"{each.allowing(name) * 100:.0f}",
                f"{each.covered(name) * 100:.0f} ({below:.0f}, {above:.0f})",
                f"±{np.median(each.reaches[name]) * 100:.1f}",
            ]
        rows.append(row)
    headings = ["method", "mean", "sd between trainings"]
    for count in counts:
        headings += [f"(a) held, {count} trainings", "plain (below, above)", "interval"]
    told = [table(headings, rows), ""]
    for count, each in found.items():
        told.append(
            f"(b) With {count} trainings of every method, {each.reversed * 100:.1f} % of "
            f"{each.different[0]:,} pairs called different stand the other way round over all trainings."
        )
    told += ["", "(c) Confidence, and how often another comparison made the same choice:", ""]
    bins = [
        [str(count), f"{stated * 100:.0f} %", f"{again * 100:.0f} %", str(number)]
        for count, each in found.items()
        for stated, again, number in each.bins()
    ]
    told.append(table(["trainings", "stated", "made again", "comparisons"], bins))
    draws = next(iter(found.values())).draws
    said = (
        f"{given.count} trainings of each of {len(rows)} methods; {draws} comparisons drawn from them for each "
        "number of trainings. *Held*: intervals that allow for the error of the others' mean; *plain*: as they "
        "are printed, in brackets those wholly below and wholly above."
    )
    return "\n".join([said, "", *told])


# Worlds whose truth is known.

KINDS = {
    "alike": "spreads alike, 4 points",
    "tenfold": "tenfold apart, 1.4 to 14 points",
    "two modes": "the same, the widest third with two modes",
}
METHODS, KEPT, PICTURES, ABOUT_EACH = 12, 40, 150, 4


def world(kind: str, rng: np.random.Generator) -> Trained:
    """Draw trainings of methods ``m0`` to ``m11``, from the least spread to the widest, in logits."""
    spreads = np.full(METHODS, 0.18) if kind == "alike" else np.geomspace(0.06, 0.6, METHODS)
    luck = rng.normal(size=(METHODS, KEPT))
    if kind == "two modes":  # of mean 0 and variance 1; two thirds take off
        wide = (METHODS // 3, KEPT)
        luck[-wide[0] :] = np.where(rng.random(wide) < 2 / 3, 0.66, -1.32) + 0.36 * luck[-wide[0] :]
    able = 1.1 - rng.exponential(0.5, METHODS)[:, None] + spreads[:, None] * luck

    def asked() -> Questions:
        hard = rng.normal(0, 0.8, PICTURES).repeat(ABOUT_EACH)
        right = rng.random((METHODS, KEPT, len(hard))) < expit(able[:, :, None] + hard)
        labels = [str(place // ABOUT_EACH) for place in range(len(hard))]
        return Questions({f"m{n}": own.astype(float) for n, own in enumerate(right)}, labels)

    places = enumerate(rng.permutation(METHODS))
    costs = {f"m{n}": Cost(1000, int(place), 1e9, 1e6 * (1 + int(place))) for n, place in places}
    return Trained(asked(), asked(), costs)


def simulated(kind: str, trainings: int, worlds: int, out: Path) -> Iterator[Found]:
    """Yield the outcome of five comparisons in each of ``worlds`` worlds; finished worlds are kept."""
    for number in range(worlds):
        kept = out / f"{kind.replace(' ', '-')}-{trainings}-{number}.json"
        if kept.exists():
            yield Found(**json.loads(kept.read_text(encoding="utf-8")))
            continue
        found = calibrate(world(kind, np.random.default_rng(number)), trainings, 5, number)
        write_atomically(kept, json.dumps(asdict(found)))
        yield found


def worlds_table(found: Mapping[tuple[str, int], Found]) -> str:
    """Write the table of worlds in Markdown."""
    rows, bins = [], []
    for (kind, trainings), each in found.items():
        held = [each.covered(name) for name in each.misses]
        reaches = [float(np.median(own)) * 100 for own in each.reaches.values()]
        rows.append(
            [
                KINDS[kind],
                str(trainings),
                *(f"{share * 100:.0f}" for share in (np.mean(held), min(held), np.mean(held[-4:]))),
                f"±{np.median(reaches):.1f}, ±{np.mean(reaches[-4:]):.1f}",
                f"{each.reversed * 100:.1f} of {each.different[0]:,}",
            ]
        )
        bins += [
            [kind, str(trainings), f"{stated * 100:.0f} %", f"{again * 100:.0f} %", str(number)]
            for stated, again, number in each.bins()
        ]
    draws = next(iter(found.values())).draws
    headings = ["spreads between trainings", "trainings", "(a) held", "of the worst method"]
    headings += ["of the widest third", "interval: median, widest third", "(b) reversed, %"]
    return "\n".join(
        [
            f"{draws} comparisons a row, five in each of {draws // 5} worlds of {METHODS} methods.",
            "",
            table(headings, rows),
            "",
            "(c) Confidence, and how often another comparison made the same choice:",
            "",
            table(["world", "trainings", "stated", "made again", "comparisons"], bins),
        ]
    )


def simulate(options: argparse.Namespace) -> None:
    """Print, and with ``--write`` also write, the results in worlds whose truth is known."""
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in KINDS:
        for trainings in options.trainings:
            found[kind, trainings] = Found()
            for each in simulated(kind, trainings, options.worlds, options.out):
                found[kind, trainings].add(each)
    text = worlds_table(found)
    print(text)
    if options.write:
        write_block(ROOT / "docs" / "report.md", text, WORLDS_START, WORLDS_END)


def main() -> None:
    """Train, print the tables, or simulate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["train", "tables", "simulate"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trainings", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", action="store_true", help="the tables into docs/report.md")
    options = parser.parse_args()
    quiet_libraries()
    other = "-worlds" if options.what == "simulate" else ""
    options.out = options.out or Path(f"runs/calibration{other}")
    if options.what == "simulate":
        simulate(options)
        return
    if options.what == "train":
        train(options.out, options.seeds)
        return
    given = trained(options.out)
    counts = [count for count in options.trainings if count < given.count]
    text = tables(given, {count: calibrate(given, count, options.draws) for count in counts})
    print(text)
    if options.write:
        write_block(ROOT / "docs" / "report.md", text, START, END)


if __name__ == "__main__":
    main()
