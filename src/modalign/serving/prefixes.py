"""Keys and values of earlier requests, in pages: a prompt with the same beginning need not compute it again.

A page holds ``PAGE`` positions of all layers and hangs below the page before it, so a beginning that many
requests share is stored once. Pages are found by content (token ids, and hashes for media), and those that were
not used for longest make room, the last of a sequence before those that it continues.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from modalign.serving.requests import Prompt
from modalign.serving.slots import KeysValues

BYTES = 2**30
PAGE = 16  # positions
OVERHEAD = 2**11  # bytes that a page takes besides its keys and values

Part = Callable[[int, int], list[KeysValues]]
"""Keys and values of positions ``begin`` to ``end``, (1, H, end - begin, Dh) per layer."""


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


@dataclass(eq=False)
class _Page:
    """Positions of one content after those of its parent.

    Attributes:
        name: their content.
        states: keys and values of all layers, those of one shape together: (m, H, PAGE, Dh) each.
    """

    name: bytes
    parent: _Page | None
    states: tuple[Tensor, ...] = ()
    children: dict[bytes, _Page] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return OVERHEAD + sum(each.numel() * each.element_size() for each in self.states)


class Prefixes:
    """The pages of earlier requests.

    Args:
        most: bytes that they may take; 0 keeps nothing.

    Attributes:
        size: bytes that they take.
        evicted: pages that made room for others so far.
    """

    def __init__(self, most: int = BYTES) -> None:
        self.most, self.size, self.evicted = most, 0, 0
        self._root = _Page(b"", None)
        self._used: OrderedDict[_Page, None] = OrderedDict()  # a parent after its children
        self._shapes: list[list[int]] = []  # which of a sequence's 2 L tensors are stored together

    def __len__(self) -> int:
        """Return the number of pages."""
        return len(self._used)

    def known(self, prompt: Prompt, key: np.ndarray) -> int:
        """Return how many first positions of a prompt are known, at most all but the last."""
        found = PAGE * len(self._path(key))
        return _between_media(prompt, min(found, len(key) - 1))

    def get(self, key: np.ndarray, begin: int, end: int) -> list[KeysValues]:
        """Return keys and values of known positions, (1, H, end - begin, Dh) per layer."""
        path = self._path(key[: -(-end // PAGE) * PAGE])
        self._touch(path)
        pages = path[begin // PAGE :]
        first = begin // PAGE * PAGE
        cut = slice(begin - first, end - first)
        flat: list[Tensor | None] = [None] * sum(map(len, self._shapes))
        for number, places in enumerate(self._shapes):
            whole = torch.cat([page.states[number] for page in pages], dim=2)[:, :, cut]
            for place, states in zip(places, whole, strict=True):
                flat[place] = states[None]
        found = [each for each in flat if each is not None]
        return list(zip(found[::2], found[1::2], strict=True))

    def keep(self, key: np.ndarray, part: Part) -> None:
        """Store a sequence's full pages that are not stored yet.

        Args:
            key: its positions by content.
            part: gives the keys and values of some of them.
        """
        path = self._path(key)
        self._touch(path)
        for begin in range(PAGE * len(path), len(key) - PAGE + 1, PAGE):
            states = self._stacked(part(begin, begin + PAGE))
            name = key[begin : begin + PAGE].tobytes()
            page = _Page(name, path[-1] if path else self._root, states)
            if not self._make_room(page.size, path):
                return
            assert page.parent is not None
            page.parent.children[name] = page
            self.size += page.size
            path.append(page)
            self._touch(path)

    def _path(self, key: np.ndarray) -> list[_Page]:
        """Return the pages that a sequence begins with."""
        found, page = [], self._root
        for begin, end in pairwise(range(0, len(key) + 1, PAGE)):
            inner = page.children.get(key[begin:end].tobytes())
            if inner is None:
                break
            found.append(inner)
            page = inner
        return found

    def _touch(self, path: Sequence[_Page]) -> None:
        """Note that pages were used: the first of a sequence last, so that it stays as long as the rest."""
        for page in reversed(path):
            self._used[page] = None
            self._used.move_to_end(page)

    def _make_room(self, size: int, path: Sequence[_Page]) -> bool:
        """Drop pages for a new one; not those of its own sequence, which were used just now."""
        while self._used and self.size + size > self.most:
            oldest = next(iter(self._used))
            if path and oldest is path[-1]:
                return False
            del self._used[oldest]
            assert oldest.parent is not None
            del oldest.parent.children[oldest.name]
            self.size -= oldest.size
            self.evicted += 1
        return self.size + size <= self.most

    def _stacked(self, layers: Sequence[KeysValues]) -> tuple[Tensor, ...]:
        """Copy a page's keys and values, those of one shape into one tensor: few objects for many layers."""
        flat = [states for pair in layers for states in pair]
        if not self._shapes:
            alike: dict[tuple[int, ...], list[int]] = {}
            for place, states in enumerate(flat):
                alike.setdefault(tuple(states.shape), []).append(place)
            self._shapes = list(alike.values())
        return tuple(torch.cat([flat[place] for place in places]) for places in self._shapes)


def _between_media(prompt: Prompt, length: int) -> int:
    """Return the length, or the start of the medium that it would split."""
    for begin, size in prompt.spans:
        if begin < length < begin + size:
            return begin
    return length
