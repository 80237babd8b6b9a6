"""Change weights of a model temporarily, and restore them bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Weights:
    """Parameters of a model that are being changed, and their originals."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._originals: dict[str, Tensor] = {}

    def add(self, name: str, delta: Tensor, transposed: bool = False) -> None:
        """Add a change (d_out, d_in) to the parameter's present value; the sum is taken in float64."""
        parameter = self._keep(name)
        change = delta.T if transposed else delta
        with torch.no_grad():
            total = parameter.double() + change.to(parameter.device)
            parameter.copy_(total.to(parameter.dtype))

    def track(self, name: str) -> nn.Parameter:
        """Return the parameter after keeping its original."""
        return self._keep(name)

    def original(self, name: str) -> Tensor:
        """Return the parameter's original."""
        return self._originals.get(name, self._parameters[name].detach())

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for name, original in self._originals.items():
                self._parameters[name].copy_(original)
        self._originals.clear()

    def _keep(self, name: str) -> nn.Parameter:
        parameter = self._parameters[name]
        if name not in self._originals:
            self._originals[name] = parameter.detach().clone()
        return parameter


@contextmanager
def changing(model: nn.Module) -> Iterator[Weights]:
    """Yield weights that are restored when the block ends, however it ends."""
    weights = Weights(model)
    try:
        yield weights
    finally:
        weights.restore()
