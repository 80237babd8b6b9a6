"""What a merge method reads: one tensor of all parents as differences from a common origin, block by block.

Blocks of rows keep memory bounded whatever a tensor's size; the few figures of the whole tensor that a method
needs (a threshold, a product) are passes over the same blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from modalign.errors import DataError

BLOCK = 1 << 20  # elements of a block, unless one row has more


class Block(dict[str, Tensor]):
    """Parent -> delta (float64) of some rows of a tensor.

    Attributes:
        origin: the rows that the deltas are differences from, in float64.
        seed: of what is drawn for these rows.
    """

    def __init__(self, origin: Tensor, seed: str) -> None:
        super().__init__()
        self.origin, self.seed = origin, seed

    def uniform(self, parent: str) -> Tensor:
        """Return numbers from 0 to 1, the same in every run for these rows of this parent."""
        digest = hashlib.sha256(f"{self.seed}/{parent}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(self.origin.shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Deltas:
    """One tensor of several parents.

    Attributes:
        label: the tensor's identity, for messages and seeds.
        origin: what deltas are differences from: the base's tensor, or the first parent's.
        parents: parent -> tensor of the same shape, as stored.
        seed: of the merge.
    """

    label: str
    origin: Tensor
    parents: Mapping[str, Tensor]
    seed: int = 0
    block: int = field(default=BLOCK, repr=False)

    def __iter__(self) -> Iterator[Block]:
        for rows in self.rows():
            origin = self._finite("the base", self.origin[rows])
            made = Block(origin, f"{self.seed}/{self.label}/{rows.start}")
            for name, value in self.parents.items():
                made[name] = self._finite(name, value[rows]) - origin
            yield made

    def rows(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        count = len(self.origin)
        step = max(1, self.block * count // max(self.origin.numel(), 1))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def _finite(self, name: str, value: Tensor) -> Tensor:
        double = value.double()
        if not bool(torch.isfinite(double).all()):
            raise DataError(
                f"{self.label} of {name} holds values that are not finite; merge another checkpoint"
            )
        return double

    def least(self, of: Callable[[Block], Tensor], share: float) -> float:
        """Return the smallest of the ``share`` largest values of a figure over the whole tensor.

        Figures are compared in float32 (:func:`kept` does, too); equal ones are kept together.

        Args:
            of: (rows, ...) figures of a block.
            share: from 0 to 1.
        """
        size = self.origin.numel()
        many = round(share * size)
        if many >= size:
            return -np.inf
        if many <= 0:
            return np.inf
        values = np.empty(size, dtype=np.float32)
        start = 0
        for each in self:
            found = of(each).reshape(-1).float().numpy()
            values[start : start + len(found)] = found
            start += len(found)
        values.partition(size - many)
        return float(values[size - many])

    def total(self, of: Callable[[Block], Tensor]) -> Tensor:
        """Return a figure added up over all blocks."""
        return torch.stack([of(each) for each in self]).sum(0)


def kept(figure: Tensor, least: float) -> Tensor:
    """Return which figures are at least that, compared in float32; (rows, ...) booleans."""
    return figure.float() >= least
