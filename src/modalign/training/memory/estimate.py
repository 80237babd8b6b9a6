"""Estimate the memory of a training before it starts.

Activations are measured: one real forward pass over the longest batch records which tensors autograd keeps
and in which order, and the backward pass is simulated over them (a kept tensor is freed after its use, a
weight's gradient appears). Gradients and AdamW's moments follow from what trains. Added to the resident
baseline, the peak is that of the most expensive phase: forward and backward, the optimizer's step, writing a
checkpoint, the check of frozen tensors.
"""

from __future__ import annotations

import gc

import torch
from pydantic import BaseModel
from torch import nn

from modalign.memory import available, readable, resident, returns_freed_memory
from modalign.training.learners import Composed, ModelLearner
from modalign.training.memory.trace import MemoryTrace, bytes_of, module_bytes, trace_forward
from modalign.training.outputs import TrainBatch
from modalign.training.parallel import device_of
from modalign.training.references import Reference

MEASURED_POSITIONS = 2048  # a larger batch is measured on fewer rows and scaled: exact, and cheap
SLACK = 1.05  # rounding: pages on a CPU, blocks of torch's pool on CUDA
FRAGMENTS = 1.8  # unmodified glibc heap: 1.4 to 2.3 times the live memory (return_freed_memory)
LIBRARIES = 48 * 2**20  # loaded once training runs: torch's optimizers, the compiler they import
MOMENTS = 2  # AdamW keeps two tensors per trainable parameter
WHOLE_NUMBER_SUM = 2.5  # FrozenCheck, on a CPU: an int32 tensor as int64, and half of it once more


class MemoryEstimate(BaseModel):
    """Peak bytes of a training.

    Attributes:
        device: the device.
        baseline: the process without the model (Python, libraries); 0 on CUDA.
        parameters: the model's weights and buffers.
        gradients: of all trainable parameters.
        optimizer: AdamW's moments.
        activations: tensors that autograd keeps at the end of the longest batch's forward pass.
        logits: output values of that batch, alive in addition to activations.
        phases: phase -> bytes in addition to baseline and parameters.
        total: the peak.
        available: available bytes, including this process's own; None if unknown.
        rows, length: shape of the longest batch.
    """

    device: str
    baseline: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    phases: dict[str, int]
    total: int
    available: int | None
    rows: int
    length: int

    @property
    def phase(self) -> str:
        """Return the phase of the peak."""
        return max(self.phases, key=lambda name: self.phases[name])

    def warning(self, processes: int = 1) -> str | None:
        """Return a warning if this many processes do not fit."""
        if self.available is None or self.total * processes <= self.available:
            return None
        many = f"{processes} processes of {readable(self.total)} each" if processes > 1 else ""
        return (
            f"training takes about {many or readable(self.total)} on {self.device} at its peak (while "
            f"{self.phase}), but {readable(self.available)} are available: reduce --set training.batch_size "
            f"(now {self.rows} rows of {self.length} tokens) or raise --set training.accumulate, "
            "--set training.gradient_checkpointing=true, train less (--train-llm lora), or run fewer --jobs"
        )


def estimate_memory(target: Composed, *, baseline: int | None = None) -> MemoryEstimate:
    """Estimate the peak of training a session's last stage.

    Args:
        target: a session, or an equivalent.
        baseline: resident bytes of the process without the model; default: the current resident
            bytes minus the model's. 0 on CUDA.
    """
    settings, stage = target.settings, target.method.stages[-1]
    learner = ModelLearner(target, stage)
    references = target.references.of(stage, target.model)
    device = device_of(settings)
    chosen = longest_batch(target, learner)
    batch, scale = _affordable(target, learner, chosen)
    trace = trace_forward(learner, batch.to(device), stage, settings, references)
    trace.scale(scale)
    own = module_bytes(target.model) + sum(map(_resident_bytes, references.values()))
    touch(target.model)
    gc.collect()  # released models may be in reference cycles
    if device.type != "cpu":
        baseline = 0
    elif baseline is None:
        baseline = max(resident() - own, 0)
    baseline += LIBRARIES if device.type == "cpu" else 0
    return _sum_up(target, trace, own, baseline, (len(chosen), batch.input_ids.shape[1]))


def _sum_up(
    target: Composed, trace: MemoryTrace, own: int, baseline: int, shape: tuple[int, int]
) -> MemoryEstimate:
    parameters = list(target.model.parameters())
    device = device_of(target.settings)
    slack = SLACK if device.type != "cpu" or returns_freed_memory() else FRAGMENTS
    trainable = sum(bytes_of(p) for p in parameters if p.requires_grad)
    frozen = max((bytes_of(p) for p in parameters if not p.requires_grad), default=0)
    on_cpu = device.type == "cpu"
    moments = MOMENTS * trainable
    start = trainable if on_cpu and target.val_samples else 0  # of the trials
    pieces = target.settings.accumulate
    backward = trace.peak(gradients_exist=pieces > 1) + trace.tied_gradient
    phases = {
        "checking frozen tensors": int(frozen * (WHOLE_NUMBER_SUM if on_cpu else 0.5)),
        "running forward and backward": int((backward + moments) * slack),
        "stepping the optimizer": int((2 * trainable + moments) * slack),
        "writing a checkpoint": int((moments + (trainable + moments if on_cpu else 0)) * slack),
    }
    phases = {name: size + start for name, size in phases.items()}
    return MemoryEstimate(
        device=str(device),
        baseline=baseline,
        parameters=own,
        gradients=trainable,
        optimizer=moments,
        activations=trace.kept,
        logits=trace.logits,
        phases=phases,
        total=baseline + own + max(phases.values()),
        available=available(device),
        rows=shape[0],
        length=shape[1],
    )


def longest_batch(target: Composed, learner: ModelLearner) -> list[int]:
    """Return the sample indices of the first epoch's (micro-)batch with the most positions."""
    collator, settings = target.collator, target.settings
    lengths = [collator.length(sample) for sample in learner.samples]
    matched = learner.roles is not None and learner.roles.matched  # pairs stay together
    pieces = 1 if matched else settings.accumulate * settings.processes
    order = learner.order(settings.batch_size, target.seed)
    steps = -(-len(lengths) // settings.batch_size)
    batches = [order.batch(step)[::pieces] for step in range(steps)]
    worst = max(batches, key=lambda indices: len(indices) * max(lengths[i] for i in indices))
    return worst if matched else sorted(worst, key=lambda i: -lengths[i])


def _affordable(
    target: Composed, learner: ModelLearner, chosen: list[int]
) -> tuple[TrainBatch, float]:
    """Return the batch, or its longest rows if it is large, and the factor to the whole."""
    if learner.roles is not None and learner.roles.matched:
        pieces = target.settings.accumulate * target.settings.processes
        return learner.collate(chosen), 1 / pieces
    width = target.collator.length(learner.samples[chosen[0]])
    count = max(1, min(len(chosen), MEASURED_POSITIONS // max(width, 1)))
    return learner.collate(chosen[:count]), len(chosen) / count


def _resident_bytes(reference: Reference) -> int:
    """Return a reference's bytes: a folder's model, or the tensors kept from a stage's start."""
    return sum(bytes_of(tensor) for tensor in reference.weights.values())


def resident_without(module: nn.Module) -> int:
    """Return this process's resident bytes without a module's: libraries, a tokenizer, mapped files."""
    touch(module)
    gc.collect()
    return max(resident() - module_bytes(module), 0)


def touch(module: nn.Module) -> None:
    """Read every weight once: memory-mapped files become resident, as in training."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and parameter.numel():
                parameter.detach().flatten()[:: 1024 // parameter.element_size()].max()
