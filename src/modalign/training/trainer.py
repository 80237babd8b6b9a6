"""The trainer: one loop for every stage of every method.

It spends a budget step by step, keeps the state that makes a resumed run equal to an uninterrupted
one, checks frozen tensors after the first step, and stops at a loss that is not finite, with everything
needed to investigate it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalign.errors import ModalignError, UsageError
from modalign.models.heads import Head
from modalign.models.prompts import Fusion
from modalign.strict_json import read_object
from modalign.training import checkpoint
from modalign.training.budget import Budget, Ledger
from modalign.training.learners import Learner, ModelLearner
from modalign.training.learnt import take_learnt
from modalign.training.objectives import Objective
from modalign.training.outputs import Everyone, row_kind
from modalign.training.parallel import Parallel
from modalign.training.references import Reference, forward_flops, readings
from modalign.training.settings import START, LearningRates, Stage, TrainSettings
from modalign.training.tracking import Track
from modalign.training.trainable import FrozenCheck, parameter_groups

Validate = Callable[[], tuple[float, float]]  # loss and accuracy
NONFINITE = "nonfinite.json"
CHECKPOINT_STEPS = 10  # between checkpoints, unless they take very long


class NonFiniteLossError(ModalignError):
    """The loss became NaN or infinite; the state before the step is saved."""


@dataclass(frozen=True)
class StepProgress:
    """One step, for progress bars and logs."""

    step: int
    fraction: float
    loss: float
    learning_rate: float
    ledger: Ledger
    padding: float


@dataclass
class StageOutcome:
    """The result of training a stage; ``heads`` and ``fusion`` are what its terms learnt."""

    steps: int
    ledger: Ledger
    curve: list[dict[str, float | None]] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)
    fusion: Fusion | None = None

    @property
    def val_loss(self) -> float | None:
        """Return the last validation loss."""
        values = [point["val_loss"] for point in self.curve if point.get("val_loss") is not None]
        return values[-1] if values else None


def cosine(fraction: float, warmup: float) -> float:
    """Linear warm-up over the first share of the budget, then cosine decay to zero."""
    if fraction < warmup:
        return (fraction + 0.1 * warmup) / (1.1 * warmup)
    done = min((fraction - warmup) / (1 - warmup), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def trapezoid(fraction: float, warmup: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last 30 %.

    Warm-up, stable, decay (MiniCPM, arXiv 2404.06395). The schedule of learning-rate trials: without the decay,
    high rates look worse than they are, because of noise that the decay removes. In short trainings it lets
    those that take off late catch up: a cosine has taken half of their rate by then.
    """
    rising = (fraction + 0.1 * warmup) / (1.1 * warmup) if warmup else 1.0
    return max(min(rising, 1.0, (1 - fraction) / 0.3), 0.0)


SCHEDULES: dict[str, Callable[[float, float], float]] = {"cosine": cosine, "trapezoid": trapezoid}


def autocast(device: torch.device, settings: TrainSettings) -> torch.autocast:
    """Return the precision of a step's forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype != "float32")


class Trainer:
    """Train one stage.

    Args:
        learner: module, samples and batches.
        stage: objective and share.
        settings: batch size, precision and the like.
        rates: learning rates of this stage.
        budget: budget of this stage.
        folder: folder of checkpoints and log.
        seed: seed of the data order and of every step's draws.
        parallel: the other processes.
        schedule: learning-rate multiplier by spent fraction of the budget.
        validate: returns validation loss and accuracy; called at the start, at every ``val_points``-th part of
            the budget and at the end.
        val_points: 0 validates only at the end.
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
        report: Callable[[StepProgress], None] | None = None,
        references: Mapping[str, Reference] | None = None,
        track: Track | None = None,
        val_points: int | None = None,
    ) -> None:
        self.learner, self.stage, self.settings = learner, stage, settings
        self.budget, self.folder, self.parallel = budget, folder, parallel
        self.schedule, self.validate, self.report = schedule, validate, report
        self.references, self.track = references or {}, track
        self.val_points = settings.val_points if val_points is None else val_points
        self.device = parallel.device
        module = learner.module.to(self.device)
        self.call = parallel.wrap(module) if learner.splits else module
        self.shares = parallel.world if learner.splits else 1
        self.rank = parallel.rank if learner.splits else 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        groups = parameter_groups(module, rates, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)
        self.objective = Objective.of(stage)
        whole = START in self.references or "weights" in self.objective.needs
        if settings.parallel == "fsdp" and parallel.world > 1 and whole:
            raise UsageError(
                "a sharded model has no complete weights to compare: terms that read the reference "
                f"{START!r} or weights need training.parallel=ddp"
            )
        self.order = learner.order(settings.batch_size, seed)
        self.seed, self.step, self.ledger = seed, 0, Ledger()
        self.curve: list[dict[str, float | None]] = []
        self.recent: list[float] = []  # losses since the last point of the curve
        self._saved: tuple[int, int] | None = None  # step and points of the newest checkpoint
        self._saved_at = 0.0  # seconds of training
        self.plan = {  # what must be the same for a resumed run
            "budget": asdict(budget),
            "seed": seed,
            "samples": len(learner.samples),
            "batch_size": settings.batch_size,
            "objective": stage.objective,
            "learning_rates": rates.model_dump(),
            "records": stage.model_dump(
                include={"references", "roles", "matched"}, exclude_defaults=True
            ),
        }

    # ------------------------------------------------------------------ the loop

    def run(self) -> StageOutcome:
        """Train until the budget is spent; go on from the newest checkpoint.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite, now or in the resumed run.
        """
        self._restore()
        check = FrozenCheck(self.learner.module) if self.step == 0 else None
        while (fraction := self.ledger.fraction(self.budget)) < 1:
            self._validate_if_due(fraction)
            started = time.monotonic()
            loss, flops, samples, padding = self._step(fraction)
            self.step += 1
            self.ledger.spend(samples, self._mean(time.monotonic() - started), flops)
            if loss is not None:
                self.recent.append(loss)
            if check is not None:
                check.verify(self.learner.module)
                check = None
            spent = min(self.ledger.fraction(self.budget), 1.0)  # so that the last step is the end
            self._tell(spent, loss if loss is not None else math.nan, padding)
            if self._checkpoint_due():
                self.save()
        self._validate()
        self.save()
        learnt = take_learnt(self.learner.module, self.objective)
        return StageOutcome(self.step, self.ledger, self.curve, *learnt)

    def _checkpoint_due(self) -> bool:
        """Whether the next checkpoint is worth its time: where steps are slow, not after each of them.

        It waits ``checkpoint_seconds``, and up to ten times as long for ``CHECKPOINT_STEPS`` steps.
        """
        since, pause = self.ledger.seconds - self._saved_at, self.settings.checkpoint_seconds
        steps = self.step - (self._saved[0] if self._saved else 0)
        return since > pause and (steps >= CHECKPOINT_STEPS or since > 10 * pause)

    def _mean(self, seconds: float) -> float:
        """Return the mean over processes, so that all save and stop at the same step."""
        return self.parallel.sum(seconds) / self.parallel.world

    def _sum(self, value: float) -> float:
        return self.parallel.sum(value) if self.shares > 1 else value

    def _step(self, fraction: float) -> tuple[float | None, float, int, float]:
        """Take a step; returns its loss, FLOPs, samples and padding. No loss: nothing in the batch trains."""
        factor = self.schedule(fraction, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._seed()
        indices = self.order.batch(self.step)
        if self.shares == 1 and self.budget.kind != "flops" and self.learner.idles(indices):
            self._update(indices)
            return None, 0.0, len(indices), 0.0
        batches = self._counted(self._micro_batches(indices))
        spent = 0.0
        if self.objective.whole and len(batches) * self.shares > 1:
            batches, spent = self._with_everyone(batches, indices)
        losses = []
        for number, part in enumerate(batches):
            batch = part.to(self.device)
            losses.append(self._backward(batch, number == len(batches) - 1))
            spent += self._flops(batch)
        loss, flops = self._sum(float(torch.stack(losses).sum())), self._sum(spent)
        if not math.isfinite(loss):
            self._stop("loss", loss, indices)
        self._update(indices)
        padding = sum(getattr(batch, "padding", 0.0) for batch in batches) / len(batches)
        return loss, flops, len(indices), padding

    def _update(self, indices: list[int]) -> None:
        """Let the optimizer take the gradients there are."""
        for parameter in self.parameters:  # what this batch did not use goes on with its momentum
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        length = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(length):
            self._stop("gradient", length, indices)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _seed(self) -> None:
        """Make every draw of this step depend only on seed, step and rank."""
        draws = np.random.SeedSequence([self.seed, self.step, self.rank])
        number = int(draws.generate_state(1)[0])
        torch.default_generator.manual_seed(number)  # torch.manual_seed takes milliseconds
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def _backward(self, batch: Any, last: bool) -> Tensor:
        """Add this micro-batch's share of the gradient; return its share of the loss."""
        with ExitStack() as stack:
            if not last:
                stack.enter_context(self.parallel.accumulating(self.call))
            with autocast(self.device, self.settings):
                outputs = self.learner.outputs(self.call, batch)
                found = readings(self.references, self.objective, batch)
                value = self.objective.value(outputs, batch, found)
            if self.shares > 1 and "logits" not in self.objective.needs:
                value = value + 0 * outputs.logits.sum()  # reaches all parameters
            if value.requires_grad:  # text trains nothing if the language model is frozen
                (value * self.shares).backward()  # compensates for averaging over processes
        return value.detach()

    def _flops(self, batch: Any) -> float:
        """Return the FLOPs of a micro-batch, including references."""
        theirs = (r.flops(batch, self.objective.reads(name)) for name, r in self.references.items())
        return self.learner.flops(batch) + sum(theirs)

    def _micro_batches(self, indices: list[int]) -> list[Any]:
        """Return this process's part of a batch, in equally many pieces on every process."""
        if not isinstance(self.learner, ModelLearner):
            return [self.learner.collate(indices)]
        own = list(enumerate(indices))[self.rank :: self.shares]
        pieces = min(self.settings.accumulate, -(-len(indices) // self.shares))
        batches: list[Any] = []
        for piece in range(pieces):
            part = own[piece::pieces]
            if part:
                batch = self.learner.collate([index for _, index in part])
                batch.numbers = torch.tensor([number for number, _ in part])
            else:
                batch = self.learner.idle()
            batches.append(batch)
        return batches

    def _counted(self, batches: list[Any]) -> list[Any]:
        """Return micro-batches with the counts of the whole batch, by which terms divide."""
        totals: dict[str, float] = {}
        for batch in batches:
            for name, count in batch.count().items():
                totals[name] = totals.get(name, 0.0) + count
        totals = {name: self._sum(count) for name, count in totals.items()}
        share = 1 / (len(batches) * self.shares)
        return [batch.whole(totals, share) for batch in batches]

    def _with_everyone(self, batches: list[Any], indices: list[int]) -> tuple[list[Any], float]:
        """Return micro-batches with the rows of all records, and the FLOPs of computing them.

        One pass without gradients computes all rows; a second one, with the same draws, those of each
        micro-batch with gradients: together the gradient of the undivided batch (gradient
        caching: Gao et al., arXiv 2101.06983).
        """
        learner = self.learner
        assert isinstance(learner, ModelLearner)
        assert learner.roles is not None  # such terms have matched roles
        roles, keys = learner.roles.labels(indices)
        everyone = Everyone({}, roles.to(self.device), keys.to(self.device))
        spent = 0.0
        self._seed()
        for part in batches:
            batch = part.to(self.device)
            with torch.no_grad(), autocast(self.device, self.settings):
                rows = learner.outputs(self.call, batch).rows
            spent += forward_flops(learner.costs, batch, learner.needs)
            there = batch.numbers >= 0
            for need, values in rows.items():
                if row_kind(need) == "records":
                    empty = values.new_zeros(len(indices), values.shape[1])
                    known = everyone.rows.setdefault(need, empty)
                    known[batch.numbers[there]] = values[there]
        if self.shares > 1:
            everyone.rows = {k: self.parallel.total(v) for k, v in everyone.rows.items()}
        self.parallel.settle(learner.module)
        self._seed()
        return [replace(batch, everyone=everyone) for batch in batches], spent

    # ------------------------------------------------------------------ what is kept

    def _stop(self, what: str, value: float, indices: list[int]) -> None:
        """Stop at a non-finite number; save the state before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.save()
        ids = [self.learner.samples[index].record.id for index in indices]
        if self.parallel.main:
            found = {"step": self.step, "what": what, "value": str(value), "batch": ids}
            checkpoint.write_json(self.folder / NONFINITE, found)
        self.parallel.barrier()
        self._refuse_nonfinite()

    def _refuse_nonfinite(self) -> None:
        file = self.folder / NONFINITE
        found = self.parallel.from_main(read_object(file) if file.exists() else None)
        if found is None:
            return
        ids = found["batch"]
        raise NonFiniteLossError(
            f"the {found['what']} became {found['value']} at step {found['step']}; the batch was "
            f"{', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''} (all in {file}), and the state "
            "before the step is saved beside it. A lower learning rate, or --dtype float32, is the "
            "usual cure; delete the file to try the same step again"
        )

    def _validate_if_due(self, fraction: float) -> None:
        if self.val_points and fraction >= len(self.curve) / self.val_points:
            self._validate()

    def _validate(self) -> None:
        if self.curve and not self.recent:
            return
        loss, accuracy = self.validate() if self.validate else (None, None)
        self.parallel.settle(self.learner.module)
        recent = sum(self.recent) / len(self.recent) if self.recent else None
        found = {"train_loss": recent, "val_loss": loss, "val_accuracy": accuracy}
        self.curve.append({**self.ledger.state(), **found})
        self.recent = []
        if self.track and self.parallel.main and loss is not None:
            self.track({"val_loss": loss}, self.step)

    def _tell(self, fraction: float, loss: float, padding: float) -> None:
        if not self.parallel.main:
            return
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        if self.report:
            self.report(StepProgress(self.step, fraction, loss, rate, self.ledger, padding))
        if self.track:
            self.track({"loss": loss, "learning_rate": rate, **self.ledger.state()}, self.step)

    def save(self) -> None:
        """Write a checkpoint now, unless the newest one is current."""
        if self._saved == (self.step, len(self.curve)):
            return
        tensors = checkpoint.trainable_state(self.learner.module)
        moments = checkpoint.optimizer_state(self.learner.module, self.optimizer)
        if self.parallel.main:
            state = {
                "ledger": self.ledger.state(),
                "curve": self.curve,
                "recent": self.recent,
                "plan": self.plan,
            }
            checkpoint.save_checkpoint(self.folder, self.step, tensors, moments, state)
        self.parallel.barrier()
        self._saved, self._saved_at = (self.step, len(self.curve)), self.ledger.seconds

    def _newest(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]] | None:
        """Read the newest checkpoint; processes on machines that do not see it get it from the main one."""
        places = checkpoint.checkpoints(self.folder)[-1:]
        newest = self.parallel.from_main([place.name for place in places])
        seen = [place.name for place in places] == newest
        if self.parallel.sum(float(seen)) == self.parallel.world:
            return checkpoint.load_checkpoint(places[0]) if places else None
        main = self.parallel.main
        return self.parallel.from_main(
            checkpoint.load_checkpoint(places[0]) if main and places else None
        )

    def _restore(self) -> None:
        if self.step:
            return
        if self.parallel.main:
            checkpoint.clean(self.folder)
        found = self._newest()
        if found is None:
            return
        tensors, moments, state = found
        changed = [key for key, value in self.plan.items() if state["plan"].get(key, {}) != value]
        if changed:
            key = changed[0]
            raise UsageError(
                f"{self.folder} holds a training with another {key} ({state['plan'].get(key)}, now "
                f"{self.plan[key]}); choose another folder, or delete this one to start again"
            )
        checkpoint.load_trainable(self.learner.module, tensors)
        checkpoint.load_optimizer(self.learner.module, self.optimizer, moments)
        self.step, self.curve, self.recent = state["step"], state["curve"], state["recent"]
        self.ledger = Ledger(**state["ledger"])
        self._saved, self._saved_at = (self.step, len(self.curve)), self.ledger.seconds
        self._refuse_nonfinite()
