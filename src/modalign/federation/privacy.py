"""Client-level differential privacy: bounded updates, noise, and the epsilon that they give.

Each client's whole update is scaled to at most ``clip`` (Euclidean norm over all tensors), normal noise of
standard deviation ``noise * clip`` is added to the sum, and the sum is divided by the number of clients expected
(McMahan et al., arXiv 1710.06963). Clients are drawn independently (Poisson), as the accounting assumes. What a
rule does with the noisy mean costs no further privacy.

This protects clients from people who see the models, not from the server, which sees every single update: there is
no secure aggregation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from modalign.errors import UsageError, extra
from modalign.federation import seeds
from modalign.federation.rules import Tensors, Update

NO_SECURE_AGGREGATION = (
    "No secure aggregation: the server of this simulation sees every single client's update."
)


class Privacy(BaseModel):
    """Client-level differential privacy.

    Attributes:
        clip: the largest norm of a client's update.
        noise: multipliers z, where z * clip is the noise's standard deviation; one model is trained with each. 0
            gives no guarantee.
        delta: the probability for which epsilon is stated; 1 / clients ** 1.1 by default.
    """

    model_config = ConfigDict(extra="forbid")

    clip: float = Field(gt=0)
    noise: list[float] = Field(min_length=1)
    delta: float | None = Field(default=None, gt=0, lt=1)


def clipped(update: Update, clip: float) -> Update:
    """Return the update, scaled down where its norm exceeds ``clip``; every client counts as one."""
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.delta.values()))
    factor = min(1.0, clip / norm) if norm else 1.0
    return Update(update.client, {n: t.double() * factor for n, t in update.delta.items()}, 1)


def noisy_mean(
    updates: Sequence[Update],
    like: Tensors,
    clip: float,
    noise: float,
    expected: float,
    seed: int,
) -> Update:
    """Return the sum of bounded updates plus noise, divided by the number of clients expected.

    Args:
        updates: of the round; there may be none.
        like: tensors of the same names and shapes.
        clip, noise: see :class:`Privacy`.
        expected: number of clients.
        seed: of the noise.
    """
    total = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in like.items()}
    for update in updates:
        for name, delta in clipped(update, clip).delta.items():
            total[name] += delta
    generator = seeds.generator(seed, "noise")
    drawn = {
        name: t + noise * clip * torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for name, t in total.items()
    }
    return Update("the clients' noisy mean", {n: t / expected for n, t in drawn.items()}, 1)


def epsilon(noise: float, rate: float, rounds: int, delta: float) -> float:
    """Return epsilon at delta after some rounds, by dp-accounting's privacy loss distributions.

    Args:
        noise: the multiplier.
        rate: probability that a client takes part in a round.
        rounds: number of rounds.
        delta: probability.

    Raises:
        UsageError: dp-accounting is not installed.
    """
    if noise == 0:
        return math.inf
    try:
        import dp_accounting
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise UsageError(f"privacy needs dp-accounting: {extra('privacy')}") from None
    event = dp_accounting.GaussianDpEvent(noise)
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountant = PLDAccountant().compose(event, rounds)
    return float(accountant.get_epsilon(delta))
