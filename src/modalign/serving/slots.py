"""Keys and values of requests that decode together, each of its own length.

At a step all rows write the same column, which is one slice: a row's keys occupy the columns that end at the
current one, however long it is, and a mask hides what lies before its start. A joining row is placed so that it
ends at the current column; a leaving row is replaced by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

COLUMNS, ROWS = 256, 4  # initial size; it doubles

KeysValues = tuple[Tensor, Tensor]  # of one layer, each (rows, heads, positions, width)


class SlotLayer(CacheLayerMixin):
    """One decoder layer's keys and values, each (rows, heads, columns, width)."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: rows are added only by ``Slots.join``."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Write the current column of all rows; return what they may read, (n, H, W, Dh)."""
        assert self.keys is not None
        assert self.values is not None
        place = slice(key_states.shape[0]), slice(None), self.slots.window
        keys, values = self.keys[place], self.values[place]
        keys[:, :, -1:] = key_states
        values[:, :, -1:] = value_states
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of columns before the next one."""
        return self.slots.now - self.slots.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the columns read."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return no limit."""
        return -1


class Slots(Cache):
    """The rows of a running batch, as a decoder's cache.

    Attributes:
        starts: per row, the column of its first position.
        now: the column that the next step writes.
        window: columns that the prepared step reads, the current one last.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layers: list[Any]
        self.starts: list[int] = []
        self.now = 0
        self.window = slice(0, 1)

    @property
    def rows(self) -> int:
        """Requests in the batch."""
        return len(self.starts)

    @property
    def first(self) -> int:
        """Return the first column that any row reads."""
        return min(self.starts, default=self.now)

    def lengths(self) -> list[int]:
        """Return the number of positions of every row so far."""
        return [self.now - start for start in self.starts]

    def mask(self, device: torch.device, reach: int | None = None) -> Tensor:
        """Return what every row reads at the next step, (n, 1, 1, W) bool: its own columns and the current one.

        Args:
            device: of the mask.
            reach: size of a sliding window, including the current position; None: all.
        """
        lows = [
            start if reach is None else max(start, self.now + 1 - reach) for start in self.starts
        ]
        columns = torch.arange(self.first, self.now + 1, device=device)
        return (columns >= torch.tensor(lows, device=device)[:, None])[:, None, None]

    def join(self, layers: Sequence[KeysValues], row: int = 0) -> None:
        """Add a row: row ``row`` of the keys and values of all layers."""
        length = layers[0][0].shape[2]
        if not self.layers:
            self.layers = [SlotLayer(self) for _ in layers]
        self._reserve(len(self.starts) + 1, length, layers)
        place, begin = len(self.starts), self.now - length
        for layer, given in zip(self.layers, layers, strict=True):
            for store, states in zip((layer.keys, layer.values), given, strict=True):
                store[place, :, :begin] = 0  # leftovers of an earlier row must not enter a product
                store[place, :, begin : self.now] = states[row]
        self.starts.append(begin)

    def ready(self) -> None:
        """Prepare a free column for the next step."""
        self._reserve(len(self.starts), 0, ())
        self.window = slice(self.first, self.now + 1)

    def advance(self) -> None:
        """Move on to the next column."""
        self.now += 1

    def leave(self, place: int) -> None:
        """Remove a row; the last row takes its place."""
        last = len(self.starts) - 1
        if place != last:
            columns = slice(self.starts[last], self.now)
            for layer in self.layers:
                for store in (layer.keys, layer.values):
                    store[place, :, : columns.start] = 0
                    store[place, :, columns] = store[last, :, columns]
            self.starts[place] = self.starts[last]
        self.starts.pop()

    def part(self, place: int, begin: int, end: int) -> list[KeysValues]:
        """Return some positions of one row's keys and values, (1, H, T, Dh) per layer, without copying."""
        start = self.starts[place]
        columns = slice(start + begin, start + end)
        one = slice(place, place + 1)
        return [
            (layer.keys[one, :, columns], layer.values[one, :, columns]) for layer in self.layers
        ]

    def _reserve(self, rows: int, length: int, like: Sequence[KeysValues]) -> None:
        """Make room for this many rows, ``length`` columns before the current one, and that one."""
        stored = self.layers[0].keys
        have_rows, have_columns = (0, 0) if stored is None else (stored.shape[0], stored.shape[2])
        if rows <= have_rows and length <= self.now < have_columns:
            return
        used = self.now - self.first
        needed = max(used, length)
        columns = _doubled(max(have_columns, COLUMNS), 2 * needed)
        new_rows = _doubled(max(have_rows, ROWS), rows)
        moved: list[list[Tensor]] = []  # of all layers before any is changed: memory may run out
        for number, layer in enumerate(self.layers):
            given = like[number] if like else (layer.keys, layer.values)
            moved.append([])
            for store, example in zip((layer.keys, layer.values), given, strict=True):
                _, H, _, Dh = example.shape
                fresh = example.new_zeros(new_rows, H, columns, Dh)
                if store is not None:
                    held = store[: len(self.starts), :, self.first : self.now]
                    fresh[: len(self.starts), :, needed - used : needed] = held
                moved[-1].append(fresh)
        for layer, stores in zip(self.layers, moved, strict=True):
            layer.keys, layer.values = stores
            layer.is_initialized = True
        shift = needed - self.now
        self.starts = [start + shift for start in self.starts]
        self.now = needed


def _doubled(size: int, wanted: int) -> int:
    while size < wanted:
        size *= 2
    return size
