"""What in-layer connectors share: hooks on decoder layers, and which memory each layer reads.

Under gradient checkpointing a layer runs a second time during the backward pass, when the
``reading`` context is long closed. So every call of a layer notes which memory it read, under the
address of its input (which the checkpoint keeps alive), and the repeated call looks it up there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modalign.connectors.base import ConnectorError, InLayerConnector, Widths, _Memory

KEPT_READINGS = 8  # forward passes whose backward pass may still be to come


def in_backward() -> bool:
    """Return whether autograd is running; a layer called then is a checkpointed one being repeated."""
    return torch._C._current_graph_task_id() != -1


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states given to a layer, positionally or as ``hidden_states``."""
    return args[0] if args else kwargs["hidden_states"]


def with_first_tensor(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the same arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": hidden}


def readable(memory: _Memory, hidden: Tensor) -> Tensor:
    """Return (B, T, K) bool: what each position of ``hidden`` (B, T, D) may read.

    Raises:
        ConnectorError: ``visible`` was made for other rows or positions.
    """
    if memory.visible.shape[:2] != hidden.shape[:2]:
        raise ConnectorError(
            f"visible is for rows and positions {tuple(memory.visible.shape[:2])}, but the layer "
            f"runs {tuple(hidden.shape[:2])}; give it for the current positions only"
        )
    return memory.visible & memory.mask.unsqueeze(1)


class HookedConnector(InLayerConnector):
    """An in-layer connector with its hooks' life cycle, for subclasses to share."""

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        self._handles: list[RemovableHandle] = []
        self._noted: OrderedDict[tuple[int, int], _Memory] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to forward passes in progress, so that copies start without it."""
        return self.__dict__ | {"_noted": OrderedDict(), "_memory": None}

    def check_layers(self, layers: nn.ModuleList) -> None:
        """Refuse layers unless there are as many as this connector was built for."""
        if len(layers) != self.widths.num_layers:
            raise ConnectorError(
                f"connector {self.name!r} was built for {self.widths.num_layers} decoder layers, "
                f"but is attached to {len(layers)}"
            )

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._noted.clear()

    def memory_of(self, layer: int, hidden: Tensor) -> _Memory | None:
        """Return the memory that this call of ``layer`` on ``hidden`` reads; None for none."""
        key = (layer, hidden.data_ptr())
        if in_backward():
            return self._noted.get(key)
        self._noted.pop(key, None)
        if self._memory is not None and (torch.is_grad_enabled() or hidden.requires_grad):
            self._noted[key] = self._memory
            if len(self._noted) > KEPT_READINGS * self.widths.num_layers:
                self._noted.popitem(last=False)
        return self._memory
