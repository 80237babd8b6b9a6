"""One process or many: what the trainer asks of its companions, by accelerate and torch.

A world of another size than the one asked for is an error: on a CPU, accelerate silently starts
unconnected processes that would each train a model of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from modalign.errors import UsageError
from modalign.models.parts import decoder_layers
from modalign.training.settings import TrainSettings


class Parallel:
    """Rank, world size, wrapping and sums. With one process everything is the identity."""

    def __init__(self, settings: TrainSettings) -> None:
        self.kind = settings.parallel
        self._wrapped: dict[int, Callable[..., object]] = {}
        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.world = state.process_index, state.num_processes
        if self.world != settings.processes:
            raise UsageError(
                f"{settings.processes} processes were asked for, but {self.world} are connected; start with "
                f"'torchrun --nproc_per_node {settings.processes} -m modalign train ...' or 'accelerate "
                "launch', and set 'processes' to their number"
            )

    @property
    def main(self) -> bool:
        """True in the process that writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> Callable[..., object]:
        """Make the model's gradients agree over processes; returns what to call in its place."""
        if self.world == 1:
            return model
        if id(model) not in self._wrapped:  # stages and trials share one wrapping
            self._wrapped[id(model)] = (
                self._shard(model) if self.kind == "fsdp" else self._replicate(model)
            )
        return self._wrapped[id(model)]

    @staticmethod
    def _replicate(model: nn.Module) -> nn.Module:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=True
        )

    def _shard(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = "cuda" if torch.cuda.is_available() else "cpu"
        mesh = init_device_mesh(device, (self.world,))
        for layer in decoder_layers(model.language_model):  # type: ignore[arg-type]
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)  # type: ignore[return-value]

    def sum(self, value: float) -> float:
        """Sum of a number over all processes."""
        if self.world == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    def part(self, indices: list[int]) -> list[int]:
        """This process's share of a batch's samples."""
        return indices[self.rank :: self.world]

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()
