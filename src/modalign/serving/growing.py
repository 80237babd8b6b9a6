"""Keys and values of prompts of equal length while they are read, in one piece or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from modalign.serving.slots import KeysValues


class GrowingLayer(CacheLayerMixin):
    """One decoder layer's keys and values, (n, H, length, Dh); memory is taken once, for the whole prompt.

    Args:
        length: positions of the prompt.

    Attributes:
        read: positions that are written.
    """

    is_sliding = False  # it keeps all positions; the model's own masks hide those outside a window

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.read = length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory."""
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], self.length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Write the next positions; return all so far."""
        begin, self.read = self.read, self.read + key_states.shape[2]
        if begin == 0 and self.read == self.length:
            self.keys, self.values = key_states, value_states  # the whole prompt: nothing to copy
            self.is_initialized = True
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, begin : self.read] = key_states
        self.values[:, :, begin : self.read] = value_states
        return self.part(0, self.read)

    def part(self, begin: int, end: int) -> KeysValues:
        """Return the keys and values of some positions."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[:, :, begin:end], self.values[:, :, begin:end]

    def get_seq_length(self) -> int:
        """Return the number of positions that are written."""
        return self.read

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of what is read."""
        return self.read + query_length, 0

    def get_max_length(self) -> int:
        """Return no limit."""
        return -1


class Growing(Cache):
    """Prompts of equal length that are read together, as a decoder's cache.

    Args:
        length: their positions.
    """

    def __init__(self, length: int) -> None:
        super().__init__(layers=[])
        self.layers: list[Any]
        self.length = length

    @property
    def read(self) -> int:
        """Positions that are written."""
        return self.layers[0].read if self.layers else 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Write a layer's next positions; return all so far."""
        while len(self.layers) <= layer_idx:
            self.layers.append(GrowingLayer(self.length))
        layer: GrowingLayer = self.layers[layer_idx]
        return layer.update(key_states, value_states)

    def add(self, known: Sequence[KeysValues]) -> None:
        """Write next positions that need not be computed, (n, H, T, Dh) per layer."""
        for number, (keys, values) in enumerate(known):
            self.update(keys, values, number)

    def part(self, begin: int, end: int, row: int = 0) -> list[KeysValues]:
        """Return keys and values of some positions of one row, (1, H, T, Dh) per layer, without copying."""
        one = slice(row, row + 1)
        parts = (layer.part(begin, end) for layer in self.layers)
        return [(keys[one], values[one]) for keys, values in parts]

    def all(self) -> list[KeysValues]:
        """Return keys and values of all positions so far, (n, H, T, Dh) per layer."""
        return [layer.part(0, layer.read) for layer in self.layers]
