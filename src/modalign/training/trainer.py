"""The trainer: one loop for every stage of every method.

It spends a budget step by step, keeps the state that makes a resumed run equal to an uninterrupted
one, checks frozen tensors after the first step, and stops at a loss that is no number with all that
is needed to look into it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalign.data.batching import BatchOrder
from modalign.errors import ModalignError
from modalign.training import checkpoint
from modalign.training.budget import Budget, Ledger
from modalign.training.learners import Learner
from modalign.training.objectives import term
from modalign.training.parallel import Parallel
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.trainable import FrozenCheck, parameter_groups

Validate = Callable[[], float]
Report = Callable[["Progress"], None]


class NonFiniteLossError(ModalignError):
    """The loss became NaN or infinite; the state before the step is saved."""


@dataclass(frozen=True)
class Progress:
    """One step, for progress bars and logs."""

    step: int
    fraction: float
    loss: float
    learning_rate: float
    ledger: Ledger
    padding: float


@dataclass
class Outcome:
    """What a stage's training came to."""

    steps: int
    ledger: Ledger
    curve: list[dict[str, float | None]] = field(default_factory=list)

    @property
    def val_loss(self) -> float | None:
        """The last validation loss."""
        values = [point["val_loss"] for point in self.curve if point.get("val_loss") is not None]
        return values[-1] if values else None


def cosine(fraction: float, warmup: float) -> float:
    """Linear warm-up over the first share of the budget, then a cosine to zero."""
    if fraction < warmup:
        return (fraction + 0.1 * warmup) / (1.1 * warmup)
    done = min((fraction - warmup) / (1 - warmup), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def constant(fraction: float, warmup: float) -> float:
    """Linear warm-up, then constant: what a learning-rate trial runs at."""
    return min((fraction + 0.1 * warmup) / (1.1 * warmup), 1.0) if warmup else 1.0


class Trainer:
    """Train one stage.

    Args:
        learner: module, samples and batches.
        stage: objective and share.
        settings: batch size, precision and the like.
        rates: learning rates of this stage.
        budget: what this stage may spend.
        folder: where checkpoints and the log go.
        seed: of the data order.
        parallel: the companions of this process.
        schedule: learning-rate multiplier by spent fraction of the budget.
        validate: returns a validation loss; called ``settings.val_points`` times.
        report: called after every step.
        references: frozen models that terms may read.
    """

    def __init__(
        self,
        learner: Learner,
        stage: Stage,
        settings: TrainSettings,
        rates: LearningRates,
        budget: Budget,
        folder: Path,
        seed: int,
        parallel: Parallel,
        *,
        schedule: Callable[[float, float], float] = cosine,
        validate: Validate | None = None,
        report: Report | None = None,
        references: Mapping[str, nn.Module] | None = None,
        track: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        self.learner, self.stage, self.settings = learner, stage, settings
        self.budget, self.folder, self.parallel = budget, folder, parallel
        self.schedule, self.validate, self.report = schedule, validate, report
        self.references, self.track = references or {}, track
        self.device = device_of(settings)
        self.call = parallel.wrap(learner.module.to(self.device))
        self.parameters = [p for p in learner.module.parameters() if p.requires_grad]
        groups = parameter_groups(learner.module, rates, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)
        self.terms = {name: (term(name), weight) for name, weight in stage.objective.items()}
        self.order = BatchOrder(
            [len(sample.ids) for sample in learner.samples],
            settings.batch_size,
            seed,
            [len(sample.media) for sample in learner.samples],
        )
        self.step, self.ledger = 0, Ledger()
        self.curve: list[dict[str, float | None]] = []
        self.losses: list[float] = []
        self.saved_at = time.monotonic()

    # ------------------------------------------------------------------ the loop

    def run(self, until: float = 1.0) -> Outcome:
        """Train until that fraction of the budget is spent; go on from the newest checkpoint."""
        self._restore()
        check = FrozenCheck(self.learner.module) if self.step == 0 else None
        while (fraction := self.ledger.fraction(self.budget)) < until:
            self._validate_if_due(fraction)
            started = time.monotonic()
            loss, flops, samples, padding = self._step(fraction)
            self.step += 1
            self.ledger.spend(samples, self._slowest(time.monotonic() - started), flops)
            self.losses.append(loss)
            if check is not None:
                check.verify(self.learner.module)
                check = None
            self._tell(fraction, loss, padding)
            if time.monotonic() - self.saved_at > self.settings.checkpoint_seconds:
                self.save()
        self._validate_if_due(until, final=True)
        self.save()
        return Outcome(self.step, self.ledger, self.curve)

    def _slowest(self, seconds: float) -> float:
        """The mean over processes, so that all of them stop at the same step."""
        return self.parallel.sum(seconds) / self.parallel.world

    def _step(self, fraction: float) -> tuple[float, float, int, float]:
        factor = self.schedule(fraction, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        indices = self.order.batch(self.step)
        batches = self._micro_batches(indices)
        total = self.parallel.sum(sum(batch.num_supervised for batch in batches))
        loss, flops, padding = 0.0, 0.0, 0.0
        for batch in batches:
            batch.num_supervised = total
            moved = batch.to(self.device)
            with self._autocast():
                outputs = self.learner.outputs(self.call, moved)
                value = sum(
                    weight * function(outputs, moved, self.references)
                    for function, weight in self.terms.values()
                )
            assert isinstance(value, torch.Tensor)
            (value * self.parallel.world).backward()
            loss += float(value.detach())
            flops += self.learner.flops(batch)
            padding += getattr(batch, "padding", 0.0) / len(batches)
        loss, flops = self.parallel.sum(loss), self.parallel.sum(flops)
        if not math.isfinite(loss):
            self._stop_at_nan(loss, indices)
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, flops, len(indices), padding

    def _micro_batches(self, indices: list[int]) -> list[Any]:
        own = self.parallel.part(indices)
        pieces = min(self.settings.accumulate, len(own))
        if not own:  # a last batch smaller than the world: run along without weight
            batch = self.learner.collate(indices[:1])
            batch.keep, batch.targets = torch.zeros_like(batch.keep), batch.targets[:0]
            batch.num_supervised = 0.0
            return [batch]
        return [self.learner.collate(own[piece::pieces]) for piece in range(pieces)]

    def _autocast(self) -> Any:
        if self.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.settings.dtype))

    def _stop_at_nan(self, loss: float, indices: list[int]) -> None:
        self.save()
        ids = [self.learner.samples[index].record.id for index in indices]
        checkpoint.write_json(
            self.folder / "nonfinite.json", {"step": self.step, "loss": str(loss), "batch": ids}
        )
        raise NonFiniteLossError(
            f"the loss became {loss} at step {self.step}; the batch was {', '.join(ids[:8])}"
            f"{', ...' if len(ids) > 8 else ''} (all in {self.folder / 'nonfinite.json'}), and the state before "
            "the step is saved beside it. A lower learning rate, or --dtype float32, is the usual cure"
        )

    # ------------------------------------------------------------------ what is kept

    def _validate_if_due(self, fraction: float, final: bool = False) -> None:
        if self.validate is None:
            return
        due = len(self.curve) / self.settings.val_points
        last = self.curve[-1]["samples"] if self.curve else -1
        if (fraction < due and not final) or last == self.ledger.samples:
            return
        recent = self.losses[-max(self.step // self.settings.val_points, 1) :]
        self.curve.append(
            {
                **self.ledger.state(),
                "train_loss": sum(recent) / len(recent) if recent else None,
                "val_loss": self.validate(),
            }
        )

    def _tell(self, fraction: float, loss: float, padding: float) -> None:
        if not self.parallel.main:
            return
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        if self.report:
            self.report(Progress(self.step, fraction, loss, rate, self.ledger, padding))
        if self.track:
            self.track({"loss": loss, "learning_rate": rate, **self.ledger.state()}, self.step)

    def save(self) -> None:
        """Write a checkpoint now."""
        tensors = checkpoint.trainable_state(self.learner.module)
        moments = checkpoint.optimizer_state(self.optimizer)
        if self.parallel.main:
            state = {
                "ledger": self.ledger.state(),
                "curve": self.curve,
                "losses": self.losses,
                "random": checkpoint.random_state(),
                "budget": str(self.budget),
            }
            checkpoint.save_checkpoint(self.folder, self.step, tensors, moments, state)
        self.parallel.barrier()
        self.saved_at = time.monotonic()

    def _restore(self) -> None:
        found = checkpoint.checkpoints(self.folder)
        if not found or self.step:
            return
        tensors, moments, state = checkpoint.load_checkpoint(found[-1])
        checkpoint.load_trainable(self.learner.module, tensors)
        checkpoint.load_optimizer(self.optimizer, moments)
        checkpoint.load_random_state(state["random"])
        self.step, self.curve, self.losses = state["step"], state["curve"], state["losses"]
        self.ledger = Ledger(**state["ledger"])


def device_of(settings: TrainSettings) -> torch.device:
    """The device asked for; ``auto`` is CUDA where there is one."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
