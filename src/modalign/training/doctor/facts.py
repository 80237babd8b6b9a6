"""Facts about a method: its padding, the steps that the budget pays for, its references' FLOPs."""

from __future__ import annotations

import math

import torch

from modalign.data.batching import BatchOrder
from modalign.data.supervision import Sample
from modalign.evaluation.scoring import score
from modalign.training.budget import Budget
from modalign.training.costs import CostModel
from modalign.training.doctor.checks_model import lengths
from modalign.training.learners import Composed, ModelLearner
from modalign.training.objectives import Objective
from modalign.training.trials import trial_share

FIRST_BATCHES = 8
LOOKED_AT = 32  # validation records whose answers are scored before training
UNKNOWN_WORDS = 6.0  # nats per token of an answer before training


def padding_of(subject: Composed) -> float:
    """Return the share of padding in the first batches, from lengths (without packing)."""
    sizes = [lengths(subject, batch) for batch in _first_batches(subject)]
    places = sum(len(batch) * max(batch) for batch in sizes)
    return 1 - sum(sum(batch) for batch in sizes) / places


def untrained_loss(subject: Composed) -> float | None:
    """Nats per token of answers before the first step, by a few validation records; None without any."""
    samples = subject.val_samples[:LOOKED_AT]
    if not samples:
        return None
    model, training = subject.model, subject.model.training
    model.eval()
    try:
        with torch.inference_mode():
            found = score(model, samples, subject.collator, next(model.parameters()).device)
    finally:
        model.train(training)
    return float(found.mean_loss)


def unknown_words(name: str, loss: float | None) -> str | None:
    """Say that a language model hardly expects the answers, where their loss before training tells so.

    The loss cannot tell why: small models may not know the words, chat models may answer in whole sentences.
    """
    if loss is None or loss <= UNKNOWN_WORDS:
        return None
    return (
        f"Before training, a token of an answer costs {name} {loss:.1f} nats, more than an even guess among "
        f"{round(math.exp(UNKNOWN_WORDS))} tokens ({UNKNOWN_WORDS:.0f}). The language model hardly knows these "
        "words, or would answer in another form"
    )


def steps_of(subject: Composed, budget: Budget) -> dict[str, int] | None:
    """Return the steps of each stage that a budget pays for after its learning-rate trials."""
    if budget.kind == "seconds":
        return None
    stages = subject.method.stages
    per_step: float = min(subject.settings.batch_size, len(subject.train_samples))
    if budget.kind == "flops":  # an earlier stage has another cost per step
        per_step, stages = _flops_per_step(subject), stages[-1:]
    whole = budget.amount * (1 - trial_share(budget, subject.settings.batch_size))
    return {stage.name: max(int(whole * stage.share / per_step), 1) for stage in stages}


def _flops_per_step(subject: Composed) -> float:
    costs, settings = CostModel.of(subject.model), subject.settings
    batches = _first_batches(subject)
    total = 0.0
    for batch in batches:
        longest = max(lengths(subject, batch))
        kept = sum(int(sample.supervised.sum()) for sample in batch)
        media = sum(len(sample.media) for sample in batch)
        total += costs.training(len(batch), longest, kept, media, settings.llm, settings.encoder)
        total += len(batch) * sum(reference_flops(subject).values())
    return total / len(batches)


def reference_flops(subject: Composed) -> dict[str, float]:
    """FLOPs per record of each reference that the last stage's terms read, from a few records."""
    stage = subject.method.stages[-1]
    references = subject.references.of(stage, subject.model)
    if not references:
        return {}
    learner = ModelLearner(subject, stage)
    batch = learner.collate(range(min(len(learner.samples), FIRST_BATCHES)))
    batch = batch.to(next(subject.model.parameters()).device)
    objective = Objective.of(stage)
    return {
        name: reference.flops(batch, objective.reads(name)) / len(batch.samples)
        for name, reference in references.items()
    }


def _first_batches(subject: Composed) -> list[list[Sample]]:
    samples = subject.train_samples
    order = BatchOrder.of(samples, subject.settings.batch_size, subject.seed)
    return [[samples[i] for i in indices] for indices in order.epoch(0)[:FIRST_BATCHES]]
