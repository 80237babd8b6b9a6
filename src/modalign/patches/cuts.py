"""What a structure keeps of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that is kept.

    Attributes:
        kept: per axis, as the model stores the tensor, the indices that are kept, ascending; None
            keeps all of them.
        name: of the tensor in the result; None where the whole tensor goes.
    """

    kept: tuple[Tensor | None, ...]
    name: str | None

    def of(self, value: Tensor) -> Tensor:
        """The part of a tensor that is kept, its values untouched."""
        for axis, index in enumerate(self.kept):
            if index is not None:
                value = value.index_select(axis, index)
        return value.contiguous()

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is kept of a tensor of a shape."""
        return tuple(
            size if index is None else len(index)
            for size, index in zip(whole, self.kept, strict=True)
        )

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by part."""
        return {f"axis{i}": index for i, index in enumerate(self.kept) if index is not None}

    def problem(self, whole: tuple[int, ...]) -> str:
        """Why it does not fit a tensor of a shape; empty where it does."""
        if len(self.kept) != len(whole):
            return f"keeps indices of {len(self.kept)} axes, its tensor has {len(whole)}"
        for size, index in zip(whole, self.kept, strict=True):
            if index is not None and (wrong := wrong_indices(index, size)):
                return wrong
        return ""


def wrong_indices(index: Tensor, size: int) -> str:
    """What is wrong with kept indices of an axis of so many; empty where nothing is."""
    if index.dtype != torch.int64 or index.dim() != 1 or not len(index):
        return "has kept indices that are not a list of whole numbers"
    if int(index[0]) < 0 or int(index[-1]) >= size or bool((index.diff() <= 0).any()):
        return f"has kept indices that do not ascend within 0 to {size - 1}"
    return ""
