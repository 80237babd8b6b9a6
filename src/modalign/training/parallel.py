"""One process or many: collective operations of the trainer, with accelerate and torch.

A world size other than the requested one is an error: on a CPU, accelerate silently starts
unconnected processes that would each train their own model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modalign.devices import device_named
from modalign.errors import UsageError
from modalign.models.parts import decoder_layers
from modalign.training.settings import TrainSettings

T = TypeVar("T")
Call = Callable[..., Any]


def device_of(settings: TrainSettings) -> torch.device:
    """Return the requested device; ``auto`` is CUDA if available."""
    return device_named(settings.device)


class Parallel:
    """Rank, world size, wrapping and sums. With one process everything is the identity."""

    def __init__(self, settings: TrainSettings) -> None:
        self.kind, self.device = settings.parallel, device_of(settings)
        self._wrapped: tuple[nn.Module, list[str], Call] | None = None
        state = PartialState(cpu=self.device.type == "cpu")
        self.rank, self.world = state.process_index, state.num_processes
        if self.world != settings.processes:
            raise UsageError(
                f"{settings.processes} processes were requested, but {self.world} are connected; "
                f"start with 'torchrun --nproc_per_node {settings.processes} -m modalign train ...' "
                "(on GPUs also 'accelerate launch --multi_gpu'), and set training.processes to "
                "their number"
            )

    @property
    def main(self) -> bool:
        """True in the process that writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> Call:
        """Synchronise the model's gradients over processes; return what to call instead.

        Raises:
            UsageError: a sharded model trains other parts than when it was sharded.
        """
        if self.world == 1:
            return model
        trains = [name for name, p in model.named_parameters() if p.requires_grad]
        if self._wrapped is not None and self._wrapped[0] is model:
            if self._wrapped[1] == trains:  # trials and training share one wrapping
                return self._wrapped[2]
            if self.kind == "fsdp":
                raise UsageError("with fsdp the same parts must train in every stage; use ddp")
        else:
            model.register_forward_hook(_use_all if self.kind == "ddp" else _use_bridges)
        self._wrapped = None  # also removes the hooks of an older wrapping
        call = self._shard(model) if self.kind == "fsdp" else self._replicate(model)
        self._wrapped = (model, trains, call)
        return call

    def _replicate(self, model: nn.Module) -> Call:
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def _shard(self, model: nn.Module) -> Call:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in decoder_layers(model.language_model):  # type: ignore[arg-type]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)  # in place: the model itself is still called
        return model

    @staticmethod
    def settle(model: nn.Module) -> None:
        """Reshard what a forward pass without a backward pass has left gathered."""
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # type: ignore[operator]

    @staticmethod
    def accumulating(call: Call) -> AbstractContextManager[None]:
        """Return a context without gradient exchange, for all but the last micro-batch."""
        return call.no_sync() if isinstance(call, DistributedDataParallel) else nullcontext()

    def sum(self, value: float) -> float:
        """Sum a number over all processes."""
        if self.world == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, element by element."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, value: T) -> T:
        """Return what the main process gave; where machines share no folder, it alone has read it."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


def _use_all(module: nn.Module, _: Any, output: Any) -> None:
    """Give unused parameters a gradient of zero, as the trainer does in one process.

    Replicas only exchange gradients that all of them have used. Asked to find unused ones, torch walks the
    graph at every step, and warns on every rank if it finds none.
    """
    _use(module.parameters(), output)


def _use_bridges(module: nn.Module, _: Any, output: Any) -> None:
    """Do the same for what a batch without media leaves out; sharded layers are not reachable here."""
    _use(chain(module.connectors.parameters(), module.encoders.parameters()), output)  # type: ignore[union-attr]


def _use(parameters: Iterable[nn.Parameter], output: Any) -> None:
    if torch.is_grad_enabled():
        sums = [parameter.sum() for parameter in parameters if parameter.requires_grad]
        if sums:
            output.logits = output.logits + 0 * sum(sums)
