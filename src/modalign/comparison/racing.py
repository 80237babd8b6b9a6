"""Add trainings where they affect the choice, and decide when to stop.

Every method begins with two trainings. Then small rounds are added, each to the method whose training luck
affects the choice most, until the choice is sure enough or the total is spent (identification of
the best arm with fixed confidence: Kaufmann, Cappé and Garivier 2016, J. Mach. Learn. Res. 17).

**The next method.** In every replicate of the methods' validation accuracies the rule picks a method. A method's
influence is the part of the picks' variance explained by its training luck, to first order: the sum over k of
cov(1[k is picked], r)^2 / var(r) (Sobol 1993; Saltelli 2002), r being the rank of its luck among the replicates,
since luck has heavy tails. Another training reduces the variance of a mean over S by 1 / (S + 1), so the next
method is the one with the largest influence / (S + 1). The luck of a method that is clearly worse, or clearly
best, changes no pick, so it is not trained again.

Additions depend only on results, not on the order in which they arrive or the number of cores, so a resumed
comparison continues as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.stats import rankdata

from modalign.comparison.results import Round, Schedule, Stop
from modalign.errors import UsageError
from modalign.numbers import words as fmt
from modalign.numbers.replicates import Replicates
from modalign.training.budget import Budget

BEGINNING = 2  # trainings of every method
ROUND = 4  # trainings between two looks; a constant, so that machines of any size add the same
NOTHING_LEARNT = "no method was better on validation than what needs no training"
NOISE = 4.0  # multiples of the sampling error below which parts of variance count as zero


@dataclass(frozen=True)
class Standing:
    """The state of the race.

    Attributes:
        method: the choice; None if no method beats what needs no training.
        confidence: that the rule picks it again.
        doubt: method -> part of the picks' variance explained by its training luck.
    """

    method: str | None
    confidence: float | None
    doubt: dict[str, float]


@dataclass(frozen=True)
class Total:
    """The limit on all trainings of a comparison: their number, or a budget."""

    amount: float
    kind: Literal["trainings", "samples", "seconds", "flops"] = "trainings"

    @classmethod
    def of(cls, text: str | None, methods: int) -> Total:
        """Read what a comparison of so many methods may spend; None: a quarter more than the beginning.

        Raises:
            UsageError: it is not understood, or does not pay for the beginning.
        """
        least = BEGINNING * methods
        found = cls(least + max(ROUND, least // 4)) if text is None else cls.parse(text)
        if found.kind == "trainings" and found.amount < least:
            raise UsageError(
                f"a total of {found} is less than two for each of {methods} methods: give {least} or more "
                "(--total), a number of trainings of every method (--seeds 1), or fewer methods"
            )
        return found

    @classmethod
    def parse(cls, text: str) -> Total:
        """Read ``40trainings``, or a budget as in :meth:`Budget.parse`.

        Raises:
            UsageError: the text is neither.
        """
        number = text.strip().removesuffix("trainings").removesuffix("training").strip()
        if number.isdecimal() and number != text.strip():
            if int(number):
                return cls(int(number))
            raise UsageError("a total of 0 trainings leaves nothing to compare")
        try:
            budget = Budget.parse(text)
        except UsageError:
            raise UsageError(
                f"total {text!r} is not understood; write 40trainings, 10m, 500000samples or 3e15flops"
            ) from None
        return cls(budget.amount, budget.kind)

    def __str__(self) -> str:
        if self.kind == "trainings":
            return f"{self.amount:.0f} trainings"
        return str(Budget(self.kind, self.amount))


class Trainings(Protocol):
    """The trainings of a comparison, real or simulated."""

    def add(self, methods: Sequence[str]) -> None:
        """Train each of these once more (methods may be repeated)."""

    def counts(self) -> Mapping[str, int]:
        """Trainings of every method that can be trained again."""

    def spent(self, kind: str, method: str | None = None) -> float:
        """Return what all trainings, or those of a method, have spent."""

    def standing(self) -> Standing:
        """Return the current state."""

    def tell(self, said: str) -> None:
        """Report progress."""


def luck_in_picks(drawn: Replicates, picks: Sequence[str]) -> dict[str, float]:
    """Return method -> part of the picks' variance explained by its training luck; 0 if not significant."""
    chosen = np.array(picks)
    indicators = np.stack([chosen == name for name in sorted(set(picks))]).astype(float)
    indicators -= indicators.mean(axis=1, keepdims=True)
    whole = float((indicators**2).mean(axis=1).sum())
    found = {}
    for name, part in drawn.parts.items():
        ranks = rankdata(part.luck)
        ranks -= ranks.mean()
        covariances = indicators @ ranks / len(ranks)
        explained = float((covariances**2).sum()) / max(float(ranks.var()), 1e-12)
        found[name] = explained if explained > NOISE * whole / len(part.luck) else 0.0
    return found


def next_round(doubt: Mapping[str, float], counts: Mapping[str, int], room: int) -> list[str]:
    """Choose the methods to train once more, each time the one that reduces the doubt most.

    Args:
        doubt: from :func:`luck_in_picks`.
        counts: trainings of the methods that may be trained again.
        room: maximum number of trainings.
    """
    now, added = dict(counts), []
    left = {name: doubt.get(name, 0.0) for name in counts}
    for _ in range(room):
        name = min(now, key=lambda each: (-left[each] / (now[each] + 1), each), default=None)
        if name is None or not left[name]:
            break
        added.append(name)
        now[name] += 1
        left[name] *= (now[name] - 1) / now[
            name
        ]  # the variance of its mean decreases by this factor
    return added


def race(trainings: Trainings, methods: Sequence[str], confidence: float, total: Total) -> Schedule:
    """Begin with two trainings each, then add where it decides."""
    trainings.add([name for _ in range(BEGINNING) for name in methods])
    rounds: list[Round] = []
    added: list[str] = []
    while True:
        standing = trainings.standing()
        done = round(trainings.spent("trainings"))
        looked = {"method": standing.method, "confidence": standing.confidence}
        rounds.append(Round(added=added, trainings=done, **looked))
        stop, added = _decide(trainings, standing, confidence, total)
        if stop is not None:
            said = _words(stop, standing, confidence, total, done)
            trainings.tell(said)
            return Schedule(seeds="auto", wanted=confidence, rounds=rounds, stop=stop, words=said)
        sure = f"{standing.confidence:.0%} sure of {standing.method}"
        trainings.tell(f"{done} trainings, {sure}; next: {', '.join(added)}")
        trainings.add(added)


def _decide(
    trainings: Trainings, standing: Standing, confidence: float, total: Total
) -> tuple[Stop | None, list[str]]:
    if standing.method is None or standing.confidence is None:
        return "nothing learnt", []
    if standing.confidence >= confidence:
        return "sure enough", []
    counts = trainings.counts()
    left = total.amount - trainings.spent(total.kind)
    room = min(ROUND, int(left)) if total.kind == "trainings" else ROUND
    if total.kind != "trainings":
        counts = {
            name: count
            for name, count in counts.items()
            if trainings.spent(total.kind, name) / count <= left
        }
    if room < 1 or not counts:
        return "total spent", []
    added = next_round(standing.doubt, counts, room)
    return (None, added) if added else ("undecidable", [])


def _words(stop: Stop, standing: Standing, confidence: float, total: Total, done: int) -> str:
    sure, wanted = fmt.percent(standing.confidence), fmt.percent(confidence)
    reasons = {
        "nothing learnt": NOTHING_LEARNT,
        "sure enough": f"the choice was {sure} sure, and {wanted} were asked for",
        "total spent": f"the total of {total} was spent; the choice was {sure} sure, and {wanted} were asked for",
        "undecidable": f"the choice was {sure} sure, and what is left in doubt comes from the validation "
        "questions, not from trainings: more of those (--val) would help",
    }
    return f"Stopped after {done} trainings: {reasons[stop]}."
