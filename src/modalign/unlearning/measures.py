"""Measures of forgetting: recovery, forget quality and utility as TOFU defines them, and membership.

TOFU (arXiv 2401.06121): the truth ratio of a question is the geometric mean of the probabilities of wrong answers
over that of a paraphrased right answer, each per token. Forget quality is the p-value of a two-sample
Kolmogorov-Smirnov test between the truth ratios of the unlearned model and of one that never saw the facts: near 0
they can be told apart, near 1 they cannot. Utility is the harmonic mean of probability, ROUGE-L recall and
max(0, 1 - truth ratio) on what was retained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hmean, ks_2samp, rankdata

from modalign.numbers.bootstrap import Floats, Groups, cluster_sums, estimate_of_sums, redraw
from modalign.numbers.estimate import Estimate


def truth_ratios(right: ArrayLike, wrong: Sequence[ArrayLike]) -> Floats:
    """Return (n,) ratios from losses in nats per token.

    Args:
        right: (n,) losses of the paraphrased right answers.
        wrong: per question, the losses of its wrong answers.
    """
    means = np.array([np.mean(np.asarray(each, dtype=float)) for each in wrong])
    return np.asarray(np.exp(np.asarray(right, dtype=float) - means))


def forget_quality(unlearned: ArrayLike, without: ArrayLike) -> float:
    """Return the p-value of two samples of truth ratios having the same distribution."""
    return float(ks_2samp(np.asarray(unlearned), np.asarray(without)).pvalue)


def utility(probabilities: ArrayLike, recalls: ArrayLike, ratios: ArrayLike) -> float:
    """Return the harmonic mean of the three means on the retained questions; 0 if one of them is 0."""
    truth = np.maximum(0.0, 1 - np.asarray(ratios, dtype=float))
    means = [float(np.mean(np.asarray(each))) for each in (probabilities, recalls, truth)]
    return 0.0 if min(means) <= 0 else float(hmean(means))


def rouge_recall(said: str, wanted: str) -> float:
    """Return the longest common subsequence of words over the wanted words (ROUGE-L recall, without stemming)."""
    first, second = (re.findall(r"\w+", text.casefold()) for text in (said, wanted))
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, 1):
            longer = before + 1 if word == other else max(row[place], row[place - 1])
            before, row[place] = row[place], longer
    return row[-1] / max(len(second), 1)


def recovery(
    knew: ArrayLike,
    never: ArrayLike,
    unlearned: ArrayLike,
    groups: Groups | None = None,
    seed: int = 0,
    chance: float | None = None,
) -> tuple[Estimate | None, bool]:
    """Return (unlearned - never knew) / (knew - never knew), and whether the form tells the two apart.

    It does if knew - never knew lies beyond two standard errors of 0, and so does knew - chance where chance is
    known (a model that never knew may miss for another reason); otherwise recovery is undefined.

    Args:
        knew, never, unlearned: (n,) scores of the same questions.
        groups: (n,) labels of questions resampled together.
        seed: of the resampling.
        chance: of a guess.
    """  # fmt: skip
    k, v, u = (np.asarray(each, dtype=float) for each in (knew, never, unlearned))
    above = k if chance is None else k - chance
    sums = cluster_sums(np.stack([k - v, above, np.ones(len(k))], axis=1), groups)
    if len(sums) < 2:
        return None, False  # one subject says nothing about others
    drawn = redraw(sums, seed=seed)
    gaps = drawn[:, :2] / drawn[:, 2:]
    widened = np.sqrt(len(sums) / (len(sums) - 1))
    if (np.abs(gaps[0]) <= 2 * widened * gaps[1:].std(axis=0)).any():
        return None, False

    def combine(found: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return found[:, 0] / found[:, 1]

    found = estimate_of_sums(
        np.stack([u - v, k - v], axis=1), combine, groups=groups, seed=seed, over="questions"
    )
    return found, True


def membership(inside: ArrayLike, outside: ArrayLike, seed: int = 0) -> Estimate:
    """Return how often a fact that was learned has a lower loss than one never seen (AUC; .5 tells nothing).

    Args:
        inside, outside: (n,), (m,) losses per token.
        seed: of the resampling.
    """
    first, second = np.asarray(inside, dtype=float), np.asarray(outside, dtype=float)
    rng = np.random.default_rng(seed)
    values = [_auc(first, second)]
    values += [
        _auc(rng.choice(first, len(first)), rng.choice(second, len(second))) for _ in range(1000)
    ]
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(
        value=values[0],
        low=float(low),
        high=float(high),
        n=len(first) + len(second),
        over="facts",
        interval="bootstrap",
        chance=0.5,
    )


def _auc(inside: Floats, outside: Floats) -> float:
    ranks = rankdata(np.concatenate([-inside, -outside]))
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
