"""The part of a tensor that a structure keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that is kept.

    Attributes:
        kept: the kept indices, ascending, per axis as the model stores the tensor; None keeps all
            of an axis.
        name: of the tensor in the result; None if the whole tensor is removed.
    """

    kept: tuple[Tensor | None, ...]
    name: str | None

    def of(self, value: Tensor) -> Tensor:
        """Return the part of a tensor that is kept, with its values unchanged."""
        for axis, index in enumerate(self.kept):
            if index is not None:
                value = value.index_select(axis, index)
        return value.contiguous()

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what is kept of a tensor with shape ``whole``."""
        return tuple(
            size if index is None else len(index)
            for size, index in zip(whole, self.kept, strict=True)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by part."""
        return {f"axis{i}": index for i, index in enumerate(self.kept) if index is not None}

    def problem(self, whole: tuple[int, ...]) -> str:
        """Say why it does not fit a tensor with shape ``whole``; empty if it does."""
        if len(self.kept) != len(whole):
            return f"keeps indices of {len(self.kept)} axes, its tensor has {len(whole)}"
        for size, index in zip(whole, self.kept, strict=True):
            if index is not None and (wrong := wrong_indices(index, size)):
                return wrong
        return ""


def wrong_indices(index: Tensor, size: int) -> str:
    """Say what is wrong with the kept indices of an axis of ``size``; empty if nothing is."""
    if index.dtype != torch.int64 or index.dim() != 1 or not len(index):
        return "has kept indices that are not a list of whole numbers"
    if int(index[0]) < 0 or int(index[-1]) >= size or bool((index.diff() <= 0).any()):
        return f"has kept indices that do not ascend within 0 to {size - 1}"
    return ""
