"""The full examination: it checks everything without stopping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modalign.data.modalities import modality_of
from modalign.data.supervision import Sample
from modalign.errors import ModalignError
from modalign.memory import readable, return_freed_memory
from modalign.models.quiet import quietly
from modalign.progress import Progress
from modalign.training.budget import Budget
from modalign.training.doctor.checks_data import attempt, examine_data, examine_text
from modalign.training.doctor.checks_model import REFUSALS, lengths, refusal, try_out
from modalign.training.doctor.diagnosis import Diagnosis, MethodFacts
from modalign.training.doctor.facts import (
    padding_of,
    reference_flops,
    steps_of,
    unknown_words,
    untrained_loss,
)
from modalign.training.doctor.workshop import Workshop
from modalign.training.learners import Composed
from modalign.training.memory.estimate import estimate_memory, resident_without
from modalign.training.methods import Method
from modalign.training.settings import TrainSettings
from modalign.training.sources import DataFiles, Parts
from modalign.training.splits import Splits
from modalign.training.trainable import count_parts

MUCH_PADDING = 0.3
FEW_STEPS = 50


@quietly()
def examine(
    parts: Parts,
    data: DataFiles,
    settings: TrainSettings,
    methods: Sequence[Method],
    *,
    cache: Path,
    budget: Budget | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Diagnosis:
    """Check everything that a training of these methods needs.

    Args:
        parts: language model and encoder.
        data: files.
        settings: how to train.
        methods: methods to train.
        cache: directory of encoder features (only the checked media are encoded).
        budget: budget of one method, for the number of steps.
        processes: number of simultaneous trainings.
        progress: called with (name, done, total).
    """
    return_freed_memory()
    found = Diagnosis()
    llm = attempt(found, "text", "language model", parts.load_llm)
    tokenizer = llm.tokenizer if llm is not None else None
    baseline = resident_without(llm.model) if llm is not None else 0
    splits = examine_data(found, data, tokenizer, progress, parts.modalities)
    if llm is None or splits is None:
        return found
    examine_text(found, splits, llm.tokenizer)
    shop = Workshop(parts, llm, settings, splits.train, splits.val, cache, splits.text)
    usable = [
        raw
        for raw in sorted({method.facts.raw_input for method in methods})
        if _examine_encoders(found, shop, raw)
    ]
    for number, method in enumerate(methods):
        if progress:
            progress("examining methods", number, len(methods))
        if method.facts.raw_input in usable:
            _examine_method(found, shop, method, splits, budget, baseline)
    if progress:
        progress("examining methods", len(methods), len(methods))
    _examine_machine(found, processes)
    return found


def _examine_encoders(found: Diagnosis, shop: Workshop, raw: bool) -> bool:
    """Load every modality's encoder; return whether all were loaded."""
    encoders = attempt(found, "encoder", "encoders", lambda: shop.encoders(raw))
    for encoder in encoders or []:
        key = "patches" if raw and modality_of(encoder.modality).raw_patches else encoder.modality
        module = encoder.module
        found.encoder[key] = {
            "name": encoder.name,
            "feature_size": module.feature_size,
            "num_features": module.num_features,
            "grid": list(module.grid) if module.grid else None,
        }
        grid = f"{module.grid[0]} x {module.grid[1]}" if module.grid else "none"
        size = f"d = {module.feature_size}, N = {module.num_features}, grid {grid}"
        name = "raw patches" if key == "patches" else f"{key} encoder"
        found.add("encoder", name, f"{encoder.name}: {size}")
    return encoders is not None


def _examine_method(
    found: Diagnosis,
    shop: Workshop,
    method: Method,
    splits: Splits,
    budget: Budget | None,
    baseline: int,
) -> None:
    facts = MethodFacts(name=method.name, family=method.facts.family, enters=method.facts.enters)
    found.methods.append(facts)
    try:
        with shop.subject(method) as subject:
            samples = [*splits.train, *splits.val, *splits.evaluation]
            _measure(found, facts, subject, samples, budget, baseline)
    except REFUSALS as error:
        found.fail("methods", method.name, refusal(method, error))


def _measure(
    found: Diagnosis,
    facts: MethodFacts,
    subject: Composed,
    samples: Sequence[Sample],
    budget: Budget | None,
    baseline: int,
) -> None:
    collator, method = subject.collator, subject.method
    facts.tokens, facts.limit = collator.tokens_per_medium, collator.max_length
    facts.longest = max(lengths(subject, samples))
    facts.parts = count_parts(subject.model)
    if not method.trains(subject.settings.llm):
        try_out(subject, samples)
        found.add(
            "methods", method.name, "nothing trains: the model reads the tools' text unchanged"
        )
        return
    if sum(part.trainable for part in facts.parts) == 0:
        raise ModalignError(f"{method.name}: nothing trains; raise a learning rate above 0")
    facts.features = try_out(subject, samples)
    facts.padding = padding_of(subject)
    facts.steps = steps_of(subject, budget) if budget is not None else None
    facts.memory = estimate_memory(subject, baseline=baseline)
    _examine_words(found, method.name, subject)
    kept = "read in the layers" if facts.enters == "in-layer" else "in the text"
    detail = (
        "tried with text alone, as no training record holds a medium"
        if facts.features is None
        else f"{facts.features} tokens per medium {kept}, placeholders agree"
    )
    facts.references = reference_flops(subject)
    for name, flops in facts.references.items():
        detail += f"; terms read {name}, {flops:.3g} FLOPs a record"
    found.add("methods", method.name, detail, _complaint(facts, subject.settings))


def _examine_words(found: Diagnosis, name: str, subject: Composed) -> None:
    """What answers cost before training, with the first method that trains."""
    if any(check.name == "words" for check in found.checks):
        return
    loss = untrained_loss(subject)
    if unknown := unknown_words(name, loss):
        model = "choose a language model that knows the words (--llm)"
        frozen = subject.settings.llm == "frozen"
        advice = (
            f"name the form or the options in the question, {model}, or let it train (--train-llm lora)"
            if frozen
            else f"name the form or the options in the question, or {model}; what trains may learn them, too"
        )
        found.add("text", "words", unknown, advice)
    elif loss is not None:
        found.add("text", "words", f"a token of an answer costs {loss:.1f} nats before training")


def _complaint(facts: MethodFacts, settings: TrainSettings) -> str | None:
    if facts.padding > MUCH_PADDING and not settings.packing:
        return f"{facts.padding:.0%} of the positions are padding: --set training.packing=true"
    few = min((facts.steps or {"": FEW_STEPS}).values())
    if few < FEW_STEPS:
        return f"the budget pays for {few} steps only: raise it (--budget), or lower --set training.batch_size"
    return None


def _examine_machine(found: Diagnosis, processes: int) -> None:
    known = [(facts, facts.memory) for facts in found.methods if facts.memory is not None]
    if not known:
        return
    facts, memory = max(known, key=lambda pair: pair[1].total)
    have = readable(memory.available) if memory.available is not None else "unknown"
    times = f" in each of {processes} processes" if processes > 1 else ""
    detail = f"at most {readable(memory.total)} ({facts.name}){times}, {have} available"
    found.add("machine", "memory", detail, memory.warning(processes))
