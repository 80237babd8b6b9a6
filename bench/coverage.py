"""How often do the 95 % intervals of ``modalign.numbers`` hold the truth? Simulated from known truths.

Every kind of interval is made from samples of 20, 100 and 1,000 records (and of 1 to 5 trainings where trainings
are sampled too), 2,000 times each. It prints the share of intervals that hold the truth, and the shares that lie
wholly below and above it. With 2,000 draws a share of 95 % is known to within 1 point.

    python -m bench.coverage [--draws 2000] [--only WORDS] [--out runs/coverage.json]

Results are kept in the file and simulated again only for another number of draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.files import write_atomically
from modalign.numbers.bootstrap import (
    Floats,
    estimate,
    estimate_of_sums,
    mean_of_few,
    ratio,
    redrawn_means,
)
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import difference_estimate
from modalign.numbers.sampling import Sampling
from modalign.numbers.shares import share
from modalign.numbers.trainings import estimate_mean, estimate_ratio, hierarchical_bootstrap

SIZES = (20, 100, 1000)
TRAININGS = (3, 4, 5)
RESAMPLES = 600
TOGETHER = 4  # records about one image
HARD = 0.8  # standard deviation of questions' difficulty, in logits

Draw = Callable[[np.random.Generator, int, int], Estimate]


@dataclass(frozen=True)
class World:
    """A truth, and how a sample from it is drawn and estimated.

    Attributes:
        kind: of interval.
        setting: what the samples are like.
        truth: the value that the interval should hold.
        draw: random generator, number of records, number of trainings -> estimate.
        sizes: numbers of records.
        trainings: numbers of trainings; 0 if the model is given.
    """

    kind: str
    setting: str
    truth: float
    draw: Draw
    sizes: tuple[int, ...] = SIZES
    trainings: tuple[int, ...] = (0,)


def labels(n: int) -> list[str]:
    """Label records so that every four are about one image."""
    return [str(place // TOGETHER) for place in range(n)]


def seed(rng: np.random.Generator) -> int:
    """Draw a seed for the estimate's own draws."""
    return int(rng.integers(2**31))


def logistic(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-values)))


def mean_logistic(middle: float, *spreads: float) -> float:
    """Return the mean of the logistic of a normal variable, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = float(np.sqrt(sum(each**2 for each in spreads)))
    return float((weights * logistic(middle + spread * nodes)).sum() / weights.sum())


# The model is given: only records are sampled.


def shares(rate: float) -> Draw:
    return lambda rng, n, _: share(rng.random(n) < rate)


def shares_by_image(rate: float) -> Draw:
    def draw(rng: np.random.Generator, n: int, _: int) -> Estimate:
        easy = rng.beta(2 * rate, 2 * (1 - rate), n // TOGETHER).repeat(TOGETHER)
        return share(rng.random(n) < easy, labels(n))

    return draw


def mean_of(values: Callable[[np.random.Generator, int], Floats]) -> Draw:
    def draw(rng: np.random.Generator, n: int, _: int) -> Estimate:
        columns = np.stack([values(rng, n), np.ones(n)], axis=1)
        found = estimate_of_sums(columns, ratio, seed=seed(rng), resamples=RESAMPLES)
        assert found is not None
        return found

    return draw


def means_by_image(rng: np.random.Generator, n: int, _: int) -> Estimate:
    values = rng.normal(0, 1, n // TOGETHER).repeat(TOGETHER) + rng.normal(0, 1, n)
    columns = np.stack([values, np.ones(n)], axis=1)
    found = estimate_of_sums(columns, ratio, groups=labels(n), seed=seed(rng), resamples=RESAMPLES)
    assert found is not None
    return found


def word_errors(rng: np.random.Generator, n: int, _: int) -> Estimate:
    """Estimate the error rate of transcripts of 1 to about 20 words, each with its own error rate."""
    words = 1 + rng.poisson(8, n)
    wrong = rng.binomial(words, rng.beta(2, 6, n))
    found = estimate_of_sums(
        np.stack([wrong, words], axis=1), ratio, seed=seed(rng), resamples=RESAMPLES
    )
    assert found is not None
    return found


def harmonic(rng: np.random.Generator, n: int, _: int) -> Estimate:
    """Estimate the harmonic mean of three mean scores of the same edits."""
    columns = {name: rng.beta(a, 2, n) for name, a in (("es", 8), ("ps", 4), ("ns", 3))}
    drawn = redrawn_means(columns, RESAMPLES, seed(rng))
    return estimate(3 / sum(1 / each for each in drawn.values()), n)


def correlation(rng: np.random.Generator, n: int, _: int) -> Estimate:
    """Estimate a correlation coefficient of 0.5, through Fisher's transformation, by jackknife."""
    one = rng.normal(size=n)
    other = 0.5 * one + np.sqrt(0.75) * rng.normal(size=n)

    def statistic(kept: np.ndarray) -> Floats:
        return np.array([np.arctanh(np.corrcoef(one[kept], other[kept])[0, 1])])

    value = float(statistic(np.arange(n))[0])
    low, high = Sampling([str(i) for i in range(n)], seed(rng)).jackknife(statistic)
    return Estimate(value=value, low=float(low[0]), high=float(high[0]), n=n)


def few(rng: np.random.Generator, _: int, count: int) -> Estimate:
    return mean_of_few(rng.normal(size=count))


# A method is judged: trainings are sampled too.


def answers(
    rng: np.random.Generator, n: int, trainings: int, ability: float, spread: float, hard: Floats
) -> Floats:
    """Draw (S, n) right answers of trainings that differ in ability to questions that differ in difficulty."""
    able = ability + spread * rng.normal(size=(trainings, 1))
    return (rng.random((trainings, n)) < logistic(able + hard)).astype(np.float64)


def difficulty(rng: np.random.Generator, n: int, by_image: bool = False) -> Floats:
    if by_image:
        return HARD * rng.normal(size=n // TOGETHER).repeat(TOGETHER)
    return HARD * rng.normal(size=n)


def accuracy(ability: float, spread: float, *, by_image: bool = False) -> Draw:
    def draw(rng: np.random.Generator, n: int, trainings: int) -> Estimate:
        given = answers(rng, n, trainings, ability, spread, difficulty(rng, n, by_image))
        groups = labels(n) if by_image else None
        return estimate_mean(given, groups=groups, seed=seed(rng), resamples=RESAMPLES)

    return draw


def precision(spread: float) -> Draw:
    """Estimate the precision of the answer yes, which half of the questions get."""

    def draw(rng: np.random.Generator, n: int, trainings: int) -> Estimate:
        expected = rng.random(n) < 0.5
        hard = difficulty(rng, n)
        yes = answers(rng, n, trainings, 1.2, spread, hard)
        said = np.where(expected, yes, 1 - yes)
        found = estimate_ratio(said * expected, said)
        return found if found is not None else Estimate(value=0.0, n=0)

    return draw


def paired(spread: float, other_spread: float, *, alone: bool = False) -> Draw:
    """Estimate the first method's accuracy minus the second's; ``alone``: the first was trained only once."""

    def draw(rng: np.random.Generator, n: int, trainings: int) -> Estimate:
        hard = difficulty(rng, n)
        given = {
            "a": answers(rng, n, 1 if alone else trainings, 1.0, spread, hard),
            "b": answers(rng, n, trainings, 0.5, other_spread, hard),
        }
        if alone:
            given["c"] = answers(rng, n, trainings, 0.2, spread, hard)
        drawn = hierarchical_bootstrap(given, seed=seed(rng), resamples=RESAMPLES)
        return difference_estimate(drawn, "a", "b")

    return draw


def among_others(spread: float) -> Draw:
    """Estimate one accuracy among twelve methods whose spreads are tenfold apart; the others are trained twice."""
    spreads = np.geomspace(0.05, 0.5, 12)

    def draw(rng: np.random.Generator, n: int, trainings: int) -> Estimate:
        hard = difficulty(rng, n)
        given = {
            str(each): answers(rng, n, 2, 0.7, each, hard)
            for each in np.delete(spreads, abs(spreads - spread).argmin())
        }
        given["judged"] = answers(rng, n, trainings, 0.7, spread, hard)
        return hierarchical_bootstrap(given, seed=seed(rng), resamples=RESAMPLES).estimate("judged")

    return draw


def of_trainings(setting: str, truth: float, draw: Draw, kind: str = "hierarchical") -> World:
    """Make a world in which records and trainings are both sampled."""
    return World(kind, setting, truth, draw, trainings=TRAININGS)


def worlds() -> list[World]:
    """List every kind of interval with its truths."""
    small, large = 0.15, 0.5  # about 3 and 10 points between trainings

    def gap(spread: float, other: float) -> float:
        return mean_logistic(1.0, HARD, spread) - mean_logistic(0.5, HARD, other)

    found = [
        World("Wilson", "share of 70 %", 0.7, shares(0.7)),
        World("Wilson", "share of 90 %", 0.9, shares(0.9)),
        World("Wilson", "share of 70 %, four records an image", 0.7, shares_by_image(0.7)),
        World("bootstrap", "mean of skewed scores", 0.8, mean_of(lambda r, n: r.beta(4, 1, n))),
        World(
            "bootstrap",
            "mean of right and wrong, 70 %",
            0.7,
            mean_of(lambda r, n: (r.random(n) < 0.7).astype(np.float64)),
        ),
        World("clustered bootstrap", "mean, four records an image", 0.0, means_by_image),
        World("bootstrap", "ratio of sums (word error rate)", 0.25, word_errors),
        World(
            "bootstrap",
            "harmonic mean of three means",
            3 / (1 / 0.8 + 1 / (4 / 6) + 1 / 0.6),
            harmonic,
        ),
        World("jackknife", "correlation", float(np.arctanh(0.5)), correlation),
        World("student", "mean of draws", 0.0, few, sizes=(0,), trainings=TRAININGS),
        World(
            "hierarchical",
            "accuracy, one training",
            mean_logistic(0.7, HARD),
            accuracy(0.7, 0),
            trainings=(1,),
        ),
    ]
    for spread, words in ((small, "trainings 3 points apart"), (large, "10 points apart")):
        truth = mean_logistic(0.7, HARD, spread)
        found += [
            of_trainings(f"accuracy, {words}", truth, accuracy(0.7, spread)),
            of_trainings(f"difference, {words}", gap(spread, spread), paired(spread, spread)),
        ]
    right = mean_logistic(1.2, HARD, large)
    found += [
        of_trainings(
            "accuracy, 10 points apart, four questions an image",
            mean_logistic(0.7, HARD, large),
            accuracy(0.7, large, by_image=True),
        ),
        of_trainings("precision, 10 points apart", right, precision(large)),
        of_trainings("difference, 3 and 10 points apart", gap(small, large), paired(small, large)),
        of_trainings(
            "difference, the first trained once, 3 points apart",
            gap(small, small),
            paired(small, small, alone=True),
        ),
    ]
    for spread, words in ((0.05, "least"), (0.175, "middle"), (0.5, "largest")):
        setting = (
            f"accuracy, spread between trainings the {words} of twelve methods, 1 to 10 points"
        )
        truth = mean_logistic(0.7, HARD, spread)
        found.append(
            World(
                "hierarchical", setting, truth, among_others(spread), (1000,), trainings=(1, 2, 3)
            )
        )
    return found


@dataclass(frozen=True)
class Row:
    """How many of ``draws`` intervals lay wholly below and wholly above the truth."""

    world: World
    n: int
    trainings: int
    below: int
    above: int
    draws: int

    @property
    def covered(self) -> float:
        """Share of intervals that hold the truth."""
        return 1 - (self.below + self.above) / self.draws


def key(world: World, n: int, trainings: int) -> str:
    """Return the name of a row in the file."""
    return f"{world.kind} | {world.setting} | {n} | {trainings}"


def simulate(world: World, n: int, trainings: int, draws: int) -> tuple[int, int]:
    """Count intervals wholly below and wholly above the truth."""
    rng = np.random.default_rng(zlib.crc32(key(world, n, trainings).encode()))
    below = above = 0
    for _ in range(draws):
        found = world.draw(rng, n, trainings)
        below += found.high < world.truth
        above += found.low > world.truth
    return below, above


def run(draws: int, only: str, out: Path) -> list[Row]:
    """Simulate what the file does not hold yet."""
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    rows = []
    for world in worlds():
        if only not in f"{world.kind} {world.setting}":
            continue
        for n in world.sizes:
            for trainings in world.trainings:
                name = f"{key(world, n, trainings)} | {draws}"
                if name not in known:
                    known[name] = simulate(world, n, trainings, draws)
                    write_atomically(out, json.dumps(known, indent=1) + "\n")
                    print(name, known[name], file=sys.stderr, flush=True)
                rows.append(Row(world, n, trainings, *known[name], draws))
    return rows


def table(rows: list[Row]) -> str:
    """Write a Markdown table: a line per setting and number of trainings, a column per number of records."""
    lines = [
        "| interval | of | trainings | " + " | ".join(f"n = {n:,}" for n in SIZES) + " |",
        "|---|---|---|" + "---|" * len(SIZES),
    ]
    cells: dict[tuple[str, str, int], dict[int, Row]] = {}
    for row in rows:
        place = (row.world.kind, row.world.setting, row.trainings)
        cells.setdefault(place, {})[row.n] = row
    for (kind, setting, trainings), found in cells.items():
        shown = [_cell(found.get(n, found.get(0))) for n in SIZES]
        if 0 in found:  # draws and trainings alone: n does not matter
            shown[1:] = [""] * (len(SIZES) - 1)
        lines.append(f"| {kind} | {setting} | {trainings or ''} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    words = f"{row.covered * 100:.1f} ({row.below / row.draws * 100:.1f}, {row.above / row.draws * 100:.1f})"
    return words if 0.93 <= row.covered <= 0.97 else f"**{words}**"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="kinds and settings that hold these words")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.json"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = run(given.draws, given.only, given.out)
    print(
        "Percent of 95 % intervals that hold the truth (below it, above it); bold: outside 93 to 97.\n"
    )
    print(table(rows))
    missed = sum(not 0.93 <= row.covered <= 0.97 for row in rows)
    print(f"\n{len(rows) - missed} of {len(rows)} lie within 93 to 97 %.")


if __name__ == "__main__":
    main()
