"""Learning-rate trials: short trainings at a third, once and three times the given rates, under two seeds.

Every trial trains for an equal part of the trials' share, its rate falling to zero at the end. Seeds are
shared by the factors: under each, all begin with the same weights and see the same batches. Where the
share pays for less than a few steps of each, nothing is tried, and training has the whole budget.

What counts is the validation loss, charged for its spread: the mean over the seeds plus their standard
deviation. A rate that is good under one seed and bad under the other is not a good rate. The given rate is
somebody's experience, and short trials are noisy: another one must be better under every seed, by more than two
standard errors of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.training.budget import Budget, Ledger

TRIAL_FACTORS = (1 / 3, 1.0, 3.0)
TRIAL_SEEDS = 2
TRIAL_SHARE = 0.25  # of a method's budget, for all trials together
TRIAL_STEPS = 4  # a trial of fewer tells nothing
NEXT_SEED = 500  # from one seed of the trials to the next


@dataclass
class TrialRun:
    """One factor under one seed.

    Attributes:
        val_loss: per supervised token; None where the trial broke down.
        losses: of the validation samples, which add up to it.
        failure: why it broke down.
        ledger: what it spent.
    """

    val_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    failure: str | None = None
    ledger: Ledger = field(default_factory=Ledger)


@dataclass
class LearningRateTrial:
    """One factor on all learning rates, and how it did on validation data under each seed."""

    factor: float
    runs: list[TrialRun] = field(default_factory=list)
    kept: bool = False

    @property
    def samples(self) -> int:
        """Samples seen under all seeds."""
        return sum(run.ledger.samples for run in self.runs)

    @property
    def val_losses(self) -> list[float] | None:
        """Validation loss under each seed; None where the factor broke down, or was not tried."""
        known = [run.val_loss for run in self.runs if run.val_loss is not None]
        return known if known and len(known) == len(self.runs) else None

    @property
    def val_loss(self) -> float | None:
        """Validation loss, the mean over the seeds."""
        return None if self.val_losses is None else float(np.mean(self.val_losses))

    @property
    def charged(self) -> float:
        """Mean over the seeds plus standard deviation; infinite where there is no loss."""
        if self.val_losses is None:
            return math.inf
        spread = np.std(self.val_losses, ddof=1) if len(self.val_losses) > 1 else 0.0
        return float(np.mean(self.val_losses) + spread)

    @property
    def failure(self) -> str | None:
        """Why it broke down."""
        return next((run.failure for run in self.runs if run.failure), None)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> LearningRateTrial:
        """Read what :meth:`state` gave back."""
        runs = [TrialRun(**{**run, "ledger": Ledger(**run["ledger"])}) for run in state["runs"]]
        return cls(state["factor"], runs, state["kept"])


def trial_share(budget: Budget, batch_size: int) -> float:
    """Return the part of a budget that trials take: none where each would be of fewer than ``TRIAL_STEPS`` steps.

    What a step takes is known beforehand of samples only.
    """
    each = TRIAL_SHARE * budget.amount / (TRIAL_SEEDS * len(TRIAL_FACTORS))
    return 0.0 if budget.kind == "samples" and each < TRIAL_STEPS * batch_size else TRIAL_SHARE


def best(trials: Sequence[LearningRateTrial]) -> LearningRateTrial | None:
    """The trial with the lowest charged loss among factor 1 and what is clearly better; None: all broke down."""
    base = next((trial for trial in trials if trial.factor == 1), None)
    able = [trial for trial in trials if trial.val_losses is not None]
    if base is not None and base in able:
        able = [trial for trial in able if trial is base or _clearly_better(trial, base)]
    return min(able, key=lambda trial: trial.charged, default=None)


def _clearly_better(trial: LearningRateTrial, base: LearningRateTrial) -> bool:
    """Better under every seed, by more than two standard errors of the paired difference."""
    for mine, other in zip(trial.runs, base.runs, strict=True):
        gains = np.subtract(other.losses, mine.losses)
        error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
        if gains.mean() <= 2 * error:
            return False
    return True


def new_connectors(model: ModalignForConditionalGeneration, seed: int) -> dict[str, Tensor]:
    """Weights that new connectors of a model begin with under a seed, by the model's names for them."""
    torch.manual_seed(seed)
    found: dict[str, Tensor] = {}
    for modality in model.connectors:
        own = model.connector(modality)
        new = type(own)(own.widths, **asdict(own.options))
        found |= {f"connectors.{modality}.{n}": p.detach() for n, p in new.named_parameters()}
    return found
