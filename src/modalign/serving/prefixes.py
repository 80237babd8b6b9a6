"""Cache keys and values of earlier requests for those with the same prefix, such as a next turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from modalign.serving.requests import Prompt
from modalign.serving.slots import KeysValues

BYTES = 256 * 2**20  # maximum cache size
SHORTEST = 16  # positions worth copying
ENTRIES = 64


def content_key(prompt: Prompt, made: Sequence[int] = ()) -> np.ndarray:
    """Return a request's positions by content, (T,) int64: ids, and content hashes for media."""
    key = np.array([*prompt.ids, *made], dtype=np.int64)
    for place in set(prompt.spans):
        inside = [
            each for each, span in zip(prompt.media, prompt.spans, strict=True) if span == place
        ]
        # Python's own hash of a string differs between processes, which does not matter here.
        key[place[0] : sum(place)] = -1 - abs(hash(tuple(inside)))
    return key


class Prefixes:
    """Earlier prefixes; the least recently used are dropped first.

    Args:
        most: maximum bytes.
    """

    def __init__(self, most: int = BYTES) -> None:
        self.most, self.size = most, 0
        self._kept: OrderedDict[bytes, tuple[np.ndarray, list[KeysValues]]] = OrderedDict()

    def longest(self, prompt: Prompt) -> list[KeysValues]:
        """Return keys and values of the longest known prefix, at most all positions but the last."""
        key = content_key(prompt)
        best, chosen = 0, b""
        for name, (other, _) in self._kept.items():
            shared = _shared(key, other)
            if shared > best:
                best, chosen = shared, name
        best = _between_media(prompt, min(best, len(key) - 1))
        if best < SHORTEST:
            return []
        self._kept.move_to_end(chosen)
        return [(keys[:, :, :best], values[:, :, :best]) for keys, values in self._kept[chosen][1]]

    def keep(self, key: np.ndarray, layers: list[KeysValues]) -> None:
        """Store a request's keys and values, (1, H, T, Dh) per layer, for its first T positions."""
        if len(key) < SHORTEST:
            return
        size = _bytes(layers)
        if size > self.most // 4:  # one long request must not evict all others
            return
        name = key.tobytes()
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        self._kept[name] = (key, layers)
        self.size += size
        while self.size > self.most or len(self._kept) > ENTRIES:
            _, (_, dropped) = self._kept.popitem(last=False)
            self.size -= _bytes(dropped)


def _bytes(layers: list[KeysValues]) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(differs.argmax()) if differs.any() else n


def _between_media(prompt: Prompt, length: int) -> int:
    """Return the length, or the start of the medium that it would split."""
    for begin, size in prompt.spans:
        if begin < length < begin + size:
            return begin
    return length
