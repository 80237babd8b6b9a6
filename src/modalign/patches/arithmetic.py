"""The numbers of a patch: a tensor with changes on it, balanced factors, distances. All in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from modalign.errors import DataError
from modalign.patches.patch import Change, DenseChange, LowRankChange, Patch, SolvedChange

# A singular value below this share of the largest is rounding of the float64 solve, no change.
NEGLIGIBLE = 1e-12


def changed(base: Tensor, changes: Iterable[Change], transposed: bool = False) -> Tensor:
    """A tensor with changes added: the sum in float64, rounded once to the tensor's own type.

    Args:
        base: as the model stores it.
        changes: in (d_out, d_in).
        transposed: the model stores (d_in, d_out).

    Raises:
        DataError: the result overflows the tensor's type.
    """
    total = base.detach().to(torch.float64, copy=True)
    for change in changes:
        delta = change.delta().to(total.device, torch.float64)
        total += delta.T if transposed else delta
    result = total.to(base.dtype)
    if not bool(torch.isfinite(result).all()):
        raise DataError(
            f"the patch's change does not fit the weights' type {str(base.dtype)[6:]}: the largest "
            f"value would be {float(total.abs().max()):.3g}"
        )
    return result


def orthonormal(change: SolvedChange | LowRankChange) -> tuple[Tensor, Tensor]:
    """A change's factors with orthonormal columns on the right: left (d_out, r), right (d_in, r).

    Stored factors may cancel between columns, which costs digits in float32; these cannot.
    """
    left, right = (factor.double() for factor in change.factors())
    Q, upper = torch.linalg.qr(right)
    return left @ upper.T, Q


def balanced(change: Change, tolerance: float = NEGLIGIBLE) -> tuple[Tensor, Tensor, Tensor]:
    """A change by its singular value decomposition, through its factors where it has them.

    Stored factors may cancel between columns and be of very different sizes; these do and are not.

    Returns:
        left (d_out, r), right (d_in, r) with Delta = left right^T, each with the square root of the
        singular values in its columns; and all singular values, descending. r counts those above
        ``tolerance`` times the largest.
    """
    if isinstance(change, DenseChange):
        U, values, Vh = torch.linalg.svd(change.change.double(), full_matrices=False)
        V = Vh.T
    else:
        left, right = (factor.double() for factor in change.factors())
        (left_q, left_r), (right_q, right_r) = torch.linalg.qr(left), torch.linalg.qr(right)
        U, values, Vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
        U, V = left_q @ U, right_q @ Vh.T
    largest = float(values[0]) if len(values) else 0.0
    rank = int((values > tolerance * largest).sum())
    root = values[:rank].sqrt()
    return U[:, :rank] * root, V[:, :rank] * root, values


def distance(first: Patch, second: Patch) -> dict[str, float]:
    """How far two patches of one base are apart: |Delta_1 - Delta_2| / |Delta_2| per tensor.

    A tensor that only one of them changes counts with zero for the other; both zero is distance 0.
    """
    found = {}
    for name in dict.fromkeys([*second.changes, *first.changes]):
        one, two = (each.changes[name].delta() if name in each.changes else None
                    for each in (first, second))  # fmt: skip
        if one is None or two is None:
            present = one if two is None else two
            assert present is not None
            found[name] = (
                float("inf") if two is None and bool(present.any()) else float(present.any())
            )
            continue
        difference, size = float((one - two).norm()), float(two.norm())
        found[name] = difference / size if size else (0.0 if difference == 0 else float("inf"))
    return found
