"""How much memory training will take, before it starts.

Activations are measured, not guessed: one real forward pass over the longest batch tells which
tensors autograd keeps, in which order, and the backward pass is replayed over them on paper (a kept
tensor is freed after its use, a weight's gradient appears). Gradients and AdamW's moments follow
from what trains. On top of what is resident anyway, the peak is that of the most expensive phase:
forward and backward, the optimizer's step, writing a checkpoint, the check of frozen tensors.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from modalign.data.batching import BatchOrder
from modalign.models.parts import decoder_layers
from modalign.training.collation import Batch, Collator
from modalign.training.learners import Learner, ModelLearner
from modalign.training.objectives import term
from modalign.training.settings import Stage, TrainSettings
from modalign.training.trainer import device_of

MEASURED_POSITIONS = 2048  # a larger batch is measured on fewer rows and scaled: exact, and cheap
IN_FLIGHT = 2  # gradients alive around one operation of the backward pass: coming in, going out
SLACK = 1.05  # rounding: pages on a CPU, blocks of torch's own pool on CUDA
FRAGMENTS = (
    1.8  # glibc's heap left as it is: 1.4 to 2.3 times of what lives was measured (see below)
)
LIBRARIES = (
    48 * 2**20
)  # loaded only once training runs: torch's optimizers, the compiler they import
MAPPED_FROM = 2**20  # bytes
M_MMAP_THRESHOLD = -3  # its number in malloc.h
MOMENTS = 2  # AdamW keeps two tensors per trainable parameter
WHOLE_NUMBER_SUM = 2.5  # FrozenCheck, on a CPU: an int32 tensor as int64, and half of it once more


class Composed(Protocol):
    """What is needed of a session: its model, its data and how it trains."""

    model: Any
    collator: Collator
    settings: TrainSettings
    train_samples: Any
    method: Any
    seed: int


class MemoryEstimate(BaseModel):
    """Bytes that training takes at its peak.

    Attributes:
        device: where they are taken.
        baseline: what the process holds without the model (Python, libraries); 0 on CUDA.
        parameters: the model's weights and buffers.
        gradients: of all trainable parameters.
        optimizer: AdamW's moments.
        activations: tensors that autograd keeps at the end of the longest batch's forward pass.
        logits: output values of that batch, alive next to what autograd keeps.
        phases: phase -> bytes on top of baseline and parameters.
        total: the peak.
        available: bytes that can still be had, this process's own included; None if unknown.
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
        """The phase of the peak."""
        return max(self.phases, key=lambda name: self.phases[name])

    def warning(self, processes: int = 1) -> str | None:
        """What to say when that many processes like this one do not fit."""
        if self.available is None or self.total * processes <= self.available:
            return None
        many = f"{processes} processes of {readable(self.total)} each" if processes > 1 else ""
        return (
            f"training takes about {many or readable(self.total)} on {self.device} at its peak (while "
            f"{self.phase}), but {readable(self.available)} are available: reduce training.batch_size "
            f"(now {self.rows} rows of {self.length} tokens) or raise training.accumulate, set "
            "training.gradient_checkpointing=true, train less (--train-llm lora), or run fewer --jobs"
        )


def readable(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


# --- the estimate --------------------------------------------------------------------------------


def estimate_memory(
    target: Composed, batch: Batch | None = None, *, baseline: int | None = None
) -> MemoryEstimate:
    """Estimate the peak of training a session's last stage.

    Args:
        target: a session, or anything that holds the same.
        batch: what to measure on; the longest of the first epoch by default.
        baseline: resident bytes of the process without the model; by default what is resident
            now, less the model's own. 0 on CUDA.
    """
    settings, stage = target.settings, target.method.stages[-1]
    learner = ModelLearner(target.model, target.train_samples, target.collator, settings, stage)
    device = device_of(settings)
    if batch is None:
        chosen = longest_batch(target)
        batch, scale = _affordable(target, chosen)
        rows = len(chosen)
    else:
        rows, scale = batch.input_ids.shape[0], 1.0
    trace = trace_forward(learner, batch.to(device), stage, settings)
    trace.scale(scale)
    own = module_bytes(target.model)
    _touch(target.model)
    gc.collect()  # models that were let go hang in reference cycles
    if device.type != "cpu":
        baseline = 0
    elif baseline is None:
        baseline = max(resident() - own, 0)
    baseline += LIBRARIES if device.type == "cpu" else 0
    return _sum_up(target, trace, own, baseline, (rows, batch.input_ids.shape[1]))


def _sum_up(
    target: Composed, trace: Trace, own: int, baseline: int, shape: tuple[int, int]
) -> MemoryEstimate:
    parameters = list(target.model.parameters())
    device = device_of(target.settings)
    slack = SLACK if device.type != "cpu" or _returning else FRAGMENTS
    trainable = sum(_bytes(p) for p in parameters if p.requires_grad)
    frozen = max((_bytes(p) for p in parameters if not p.requires_grad), default=0)
    on_cpu = device.type == "cpu"
    moments = MOMENTS * trainable
    start = trainable if on_cpu and getattr(target, "val_samples", None) else 0  # of the trials
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


def longest_batch(target: Composed) -> list[Any]:
    """Samples of the (micro-)batch of the first epoch that holds the most positions."""
    samples, collator, settings = target.train_samples, target.collator, target.settings
    media = [len(sample.media) for sample in samples]
    order = BatchOrder(
        [len(sample.ids) for sample in samples], settings.batch_size, target.seed, media
    )
    lengths = [sample.length(collator.token_id, collator.tokens_per_medium) for sample in samples]
    pieces = settings.accumulate * settings.processes
    batches = [part for indices in order.epoch(0) for part in (indices[::pieces],)]
    worst = max(batches, key=lambda indices: len(indices) * max(lengths[i] for i in indices))
    return [samples[i] for i in sorted(worst, key=lambda i: -lengths[i])]


def _affordable(target: Composed, chosen: list[Any]) -> tuple[Batch, float]:
    """The batch, or its longest rows where it is large, and how much larger the whole is."""
    collator = target.collator
    width = chosen[0].length(collator.token_id, collator.tokens_per_medium)
    count = max(1, min(len(chosen), MEASURED_POSITIONS // max(width, 1)))
    return collator(chosen[:count]), len(chosen) / count


# --- what a forward pass keeps -------------------------------------------------------------------


@dataclass
class Trace:
    """Tensors kept for the backward pass, in the order in which they were kept.

    Attributes:
        events: (storage, bytes of it) for activations, (parameter, -bytes) for weights that train.
        logits: bytes of the outputs.
        unseen: bytes of trainable parameters that no operation kept.
        layer: bytes that recomputing one layer keeps, under gradient checkpointing.
        tied_gradient: bytes of the second gradient of a weight that is used twice.
    """

    events: list[tuple[int, float]] = field(default_factory=list)
    logits: int = 0
    unseen: int = 0
    layer: float = 0.0
    tied_gradient: int = 0

    @property
    def kept(self) -> int:
        """Bytes of activations at the end of the forward pass."""
        return int(sum({key: size for key, size in self.events if size > 0}.values()))

    def scale(self, factor: float) -> None:
        """Make activations those of a batch that is larger by a factor."""
        self.events = [(key, size * factor if size > 0 else size) for key, size in self.events]
        self.logits, self.layer = int(self.logits * factor), self.layer * factor

    def peak(self, gradients_exist: bool = False) -> int:
        """Replay the backward pass; the most that is alive at once.

        Args:
            gradients_exist: an earlier micro-batch has left its gradients.
        """
        uses = Counter(key for key, size in self.events if size > 0)
        everything = self.unseen - sum(size for _, size in dict(self.events).items() if size < 0)
        live = self.kept + self.logits + (everything if gradients_exist else 0)
        highest = live + IN_FLIGHT * self.logits
        seen: set[int] = set()
        for key, size in reversed(self.events):
            if size < 0:
                live += -size if key not in seen and not gradients_exist else 0
                seen.add(key)
                highest = max(highest, live)
                continue
            highest = max(highest, live + IN_FLIGHT * size + self.layer)
            uses[key] -= 1
            live -= size if not uses[key] else 0
        return int(max(highest, live + (0 if gradients_exist else self.unseen)))


def trace_forward(learner: Learner, batch: Any, stage: Stage, settings: TrainSettings) -> Trace:
    """Run one forward pass and its objective; note every tensor that autograd keeps.

    The random state and the model are left as they were; nothing is computed backwards.
    """
    module = learner.module
    trace = _record(learner, batch, stage, settings)
    if settings.gradient_checkpointing and hasattr(module, "language_model"):
        llm: Any = module.language_model
        llm.gradient_checkpointing_disable()
        try:
            whole = _record(learner, batch, stage, settings)
        finally:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        trace.layer = max(whole.kept - trace.kept, 0) / len(decoder_layers(llm))
    seen = {key for key, size in trace.events if size < 0}
    trainable = [p for p in module.parameters() if p.requires_grad]
    trace.unseen = sum(_bytes(p) for p in trainable if _key(p) not in seen)
    trace.tied_gradient = _tied_gradient(module)
    return trace


def _record(learner: Learner, batch: Any, stage: Stage, settings: TrainSettings) -> Trace:
    trace = Trace()
    storages = {_key(p): p for p in learner.module.parameters()}
    fixed = {_key(b) for b in learner.module.buffers()}

    def keep(tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key in storages:
            if storages[key].requires_grad:
                trace.events.append((key, -float(_bytes(storages[key]))))
        elif key not in fixed:
            trace.events.append((key, float(tensor.untyped_storage().nbytes())))
        return tensor.detach()  # the tensor itself would hold its own graph in a cycle

    buffers = [(buffer, buffer.clone()) for buffer in learner.module.buffers()]
    devices = [batch_device(learner.module).index or 0] if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        _autocast(learner.module, settings),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        outputs = learner.outputs(learner.module, batch)
        loss = sum(w * term(name)(outputs, batch, {}) for name, w in stage.objective.items())
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor) and _key(logits) not in {key for key, _ in trace.events}:
        trace.logits = logits.untyped_storage().nbytes()
    del outputs, loss
    with torch.no_grad():  # running statistics
        for buffer, value in buffers:
            buffer.copy_(value)
    return trace


def _tied_gradient(module: nn.Module) -> int:
    """A weight that is both embedding and projection has two gradients for a moment."""
    weights = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(module, name, lambda: None)()
        weights += [layer.weight] if isinstance(layer, nn.Embedding | nn.Linear) else []
    tied = len(weights) == 2 and _key(weights[0]) == _key(weights[1])
    return _bytes(weights[0]) if tied and weights[0].requires_grad else 0


def batch_device(module: nn.Module) -> torch.device:
    """Where a module is."""
    return next(module.parameters()).device


def _autocast(module: nn.Module, settings: TrainSettings) -> AbstractContextManager[Any]:
    if settings.dtype == "float32":
        return nullcontext()
    return torch.autocast(batch_device(module).type, dtype=getattr(torch, settings.dtype))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers; a storage that is shared counts once."""
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


# --- what the machine has ------------------------------------------------------------------------


_returning = False


def return_freed_memory() -> bool:
    """Make glibc give tensors of a mebibyte and more back to the system as soon as they are freed.

    Left alone it raises that limit to 32 MiB as tensors are freed, keeps them on its heap, and the heap
    falls to pieces: training then held 1.4 (everything trains) to 2.3 times (LoRA) of what was alive.
    Call it once, before a model is loaded in a process that trains on a CPU. Speed did not change
    measurably.

    Returns:
        whether the C library could be told (glibc only).
    """
    global _returning  # noqa: PLW0603 (a property of the process)
    if not _returning:
        try:
            _returning = bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM))
        except (AttributeError, OSError, TypeError):
            return False
    return _returning


def _touch(module: nn.Module) -> None:
    """Read every weight once: files mapped into memory become resident, as they will in training."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.device.type == "cpu" and parameter.numel():
                parameter.detach().flatten()[:: 1024 // parameter.element_size()].max()


def resident() -> int:
    """Bytes of this process in main memory."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes this process ever had in main memory.

    Not ``ru_maxrss`` where ``/proc`` exists: a process started by another inherits that one's.
    """
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available(device: torch.device) -> int | None:
    """Bytes that this process can have on a device, what it has already included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    free = [amount for amount in (_machine_free(), _group_free()) if amount is not None]
    return min(free) + resident() if free else None


def _machine_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _group_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's own limit leaves."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text()
            return None if most == "max" else max(int(most) - int(now), 0)
        except (OSError, ValueError):
            continue
    return None
