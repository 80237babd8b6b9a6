"""Record the tensors that a forward pass keeps for the backward pass, and the latter's peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modalign.models.parts import decoder_layers
from modalign.training.learners import Learner
from modalign.training.objectives import Objective
from modalign.training.references import Reference, readings
from modalign.training.settings import Stage, TrainSettings
from modalign.training.trainer import autocast

IN_FLIGHT = 2  # gradients alive around one operation of the backward pass: incoming and outgoing


@dataclass
class MemoryTrace:
    """Tensors kept for the backward pass, in order.

    Attributes:
        events: (storage, bytes of it) for activations, (parameter, -bytes) for trained weights.
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
        """Return the bytes of activations at the end of the forward pass."""
        return int(sum({key: size for key, size in self.events if size > 0}.values()))

    def scale(self, factor: float) -> None:
        """Scale activations to a batch larger by a factor."""
        self.events = [(key, size * factor if size > 0 else size) for key, size in self.events]
        self.logits, self.layer = int(self.logits * factor), self.layer * factor

    def peak(self, gradients_exist: bool = False) -> int:
        """Simulate the backward pass and return its peak.

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


def trace_forward(
    learner: Learner,
    batch: Any,
    stage: Stage,
    settings: TrainSettings,
    references: Mapping[str, Reference] = MappingProxyType({}),
) -> MemoryTrace:
    """Run one forward pass and its objective; record every tensor that autograd keeps.

    The random state and the model stay unchanged; no backward pass is run.
    """
    module, objective = learner.module, Objective.of(stage)

    def forward() -> tuple[Any, Tensor]:
        outputs = learner.outputs(module, batch)
        return outputs, objective.value(outputs, batch, readings(references, objective, batch))

    trace = _record(module, settings, forward)
    if settings.gradient_checkpointing and hasattr(module, "language_model"):
        llm: Any = module.language_model
        llm.gradient_checkpointing_disable()
        try:
            whole = _record(module, settings, forward)
        finally:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        trace.layer = max(whole.kept - trace.kept, 0) / len(decoder_layers(llm))
    seen = {key for key, size in trace.events if size < 0}
    trainable = [p for p in module.parameters() if p.requires_grad]
    trace.unseen = sum(bytes_of(p) for p in trainable if _key(p) not in seen)
    trace.tied_gradient = _tied_gradient(module)
    return trace


def _record(
    module: nn.Module, settings: TrainSettings, forward: Callable[[], tuple[Any, Tensor]]
) -> MemoryTrace:
    trace = MemoryTrace()
    storages = {_key(p): p for p in module.parameters()}
    fixed = {_key(b) for b in module.buffers()}

    def keep(tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key in storages:
            if storages[key].requires_grad:
                trace.events.append((key, -float(bytes_of(storages[key]))))
        elif key not in fixed:
            trace.events.append((key, float(tensor.untyped_storage().nbytes())))
        return tensor.detach()  # the tensor itself would hold its own graph in a cycle

    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    device = next(module.parameters()).device
    devices = [device.index or 0] if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        autocast(device, settings),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        outputs, loss = forward()
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor) and _key(logits) not in {key for key, _ in trace.events}:
        trace.logits = logits.untyped_storage().nbytes()
    del outputs, loss
    with torch.no_grad():  # running statistics
        for buffer, value in buffers:
            buffer.copy_(value)
    return trace


def _tied_gradient(module: nn.Module) -> int:
    """Return the bytes of a tied weight, which briefly has two gradients."""
    weights = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(module, name, lambda: None)()
        weights += [layer.weight] if isinstance(layer, nn.Embedding | nn.Linear) else []
    tied = len(weights) == 2 and _key(weights[0]) == _key(weights[1])
    return bytes_of(weights[0]) if tied and weights[0].requires_grad else 0


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's own values."""
    return tensor.numel() * tensor.element_size()


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers; shared storage counts once."""
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return sum({_key(t): t.untyped_storage().nbytes() for t in tensors}.values())
