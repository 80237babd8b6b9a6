"""What a patch does to one tensor, in the forms in which it is stored, each with its own arithmetic.

A closed-form editor solves, per weight ``W`` (d_out, d_in) and ``n`` edits with keys ``K`` (d_in, n)
and residuals ``R`` (d_out, n),

    Delta = R K^T (lambda C0 + K K^T)^-1 = R (I + K^T S)^-1 S^T,   S = (lambda C0)^-1 K

(the second form is Woodbury's identity). Storing ``K``, ``S`` and ``R`` instead of ``Delta`` keeps the
patch small and lets a single edit be removed exactly: leave out its columns and solve again, without
the model and without C0. AlphaEdit's null-space form is the same with ``S = P K / L2``, where keys that
are only protected have zero residuals.

Changes have the shape (d_out, d_in), or (d,) for a vector, and are never modified in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from modalign.errors import DataError
from modalign.patches.cuts import wrong_indices

# A singular value below this share of the largest is a rounding error of the float64 solve.
NEGLIGIBLE = 1e-12


class Change(ABC):
    """The change of one tensor.

    Class attributes:
        form: its name in reports.
    """

    form: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in), or (d,)."""

    @property
    @abstractmethod
    def layout(self) -> Any:
        """What its file holds besides tensors, as JSON: the edit of each column, for example."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by part; by default its own tensors by their names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def delta(self) -> Tensor:
        """Compute Delta."""
        found = self.low_rank()
        assert found is not None  # forms without factors override delta
        return found.delta()

    def low_rank(self) -> LowRankChange | None:
        """Return its factors, or None if it has none. Columns that a solve coupled belong to no edit."""
        return None

    @abstractmethod
    def scaled(self, factor: float) -> Change:
        """Return ``factor * Delta``, in the same form."""

    def sliced(self, rows: Tensor | None, columns: Tensor | None) -> Change:
        """Return Delta's kept rows and columns, bit for bit: ``Delta[rows][:, columns]``; None keeps all."""
        return self if rows is None and columns is None else SlicedChange(self, rows, columns)

    @abstractmethod
    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> Change | None:
        """Return the change of only some of its edits.

        Args:
            places: position of each edit that stays -> its new position.
            gone: positions of the others.

        Returns:
            None if nothing of it is left.

        Raises:
            DataError: its edits cannot be told apart; the message is the end of a sentence.
        """

    def own_keys(self) -> Tensor | None:
        """Return the keys at which its edits were written, (d_in, m); None for a change that stores none."""
        return None

    def edit_norms(self) -> dict[int, float]:
        """Return |Delta| of each edit's own columns, by the edit's position; empty without columns."""
        return {}

    def problem(self, edits: int) -> str:
        """Say what is wrong with it in a patch with ``edits`` edits; empty if nothing is."""
        finite = all(bool(torch.isfinite(value).all()) for value in self.tensors().values())
        return "" if finite else "has values that are not finite"

    def balanced(self, tolerance: float = NEGLIGIBLE) -> tuple[Tensor, Tensor, Tensor]:
        """Compute its singular value decomposition, from its factors if it has them.

        Stored factors may cancel between columns and differ greatly in size; these do not.

        Returns:
            left (d_out, r), right (d_in, r) with Delta = left right^T, each with the square root of
            the singular values in its columns; and all singular values, descending. r counts those
            above ``tolerance`` times the largest.
        """
        found = self.low_rank()
        if found is None:
            U, values, Vh = torch.linalg.svd(self.delta().double(), full_matrices=False)
            V = Vh.T
        else:
            (left_q, left_r), (right_q, right_r) = (
                torch.linalg.qr(factor.double()) for factor in (found.left, found.right)
            )
            U, values, Vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
            U, V = left_q @ U, right_q @ Vh.T
        largest = float(values[0]) if len(values) else 0.0
        rank = int((values > tolerance * largest).sum())
        root = values[:rank].sqrt()
        return U[:, :rank] * root, V[:, :rank] * root, values

    def small_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return factors whose right columns are orthonormal; None unless they are fewer numbers than Delta.

        Stored factors may cancel between columns, which costs digits in float32; these cannot.
        """
        found = self.low_rank()
        if found is None or found.columns * sum(self.shape) >= self.shape[0] * self.shape[1]:
            return None
        Q, upper = torch.linalg.qr(found.right.double())
        return found.left.double() @ upper.T, Q


class _Columns(Change):
    """A change whose factors' columns belong to edits.

    Attributes:
        edits: for each column, the position of its edit in the header's list; -1 for a column that belongs
            to no edit of this patch (a key protected for an earlier one, or a sum).
    """

    edits: tuple[int, ...]
    linear: ClassVar[str]  # the factor that is zero where nothing changes, and scales with Delta

    @property
    def layout(self) -> list[int]:
        return list(self.edits)

    @property
    def columns(self) -> int:
        return len(self.edits)

    def problem(self, edits: int) -> str:
        if wrong := super().problem(edits):
            return wrong
        widths = {value.shape[1] for value in self.tensors().values()}
        if widths != {len(self.edits)}:
            return f"has {sorted(widths)} columns, and names the edits of {len(self.edits)}"
        if any(not -1 <= edit < edits for edit in self.edits):
            return f"has columns of edits that are not among its {edits}"
        return ""

    def edit_norms(self) -> dict[int, float]:
        found = self.low_rank()
        assert found is not None
        norms = (found.left.norm(dim=0) * found.right.norm(dim=0)).tolist()
        total: dict[int, float] = {}
        for edit, norm in zip(self.edits, norms, strict=True):
            if edit >= 0:
                total[edit] = total.get(edit, 0.0) + norm
        return total

    def scaled(self, factor: float) -> Self:
        """See :class:`Change`. Keys are not scaled, so that edits can still be removed."""
        return self._with({self.linear: getattr(self, self.linear) * factor})

    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> Self | None:
        """See :class:`Change`. Keeps the columns of those edits; a solved change is then solved again."""
        new = {**places, -1: -1}
        kept = [column for column, edit in enumerate(self.edits) if edit in new]
        edits = tuple(new[self.edits[column]] for column in kept)
        left = {name: value[:, kept] for name, value in self.tensors().items()}
        if all(edit == -1 for edit in edits) and not bool(left[self.linear].any()):
            return None  # protected keys alone change nothing
        return self._with({**left, "edits": edits})

    def _with(self, fields: dict[str, Any]) -> Self:
        found: Self = replace(cast(Any, self), **fields)
        return found


@dataclass(frozen=True)
class SolvedChange(_Columns):
    """A closed-form change, stored as what it was solved from. All tensors are float64, on the CPU.

    Attributes:
        keys: K, (d_in, n).
        dual: S = (lambda C0)^-1 K, (d_in, n).
        residuals: R, (d_out, n); zero columns for keys that are only protected.
    """

    keys: Tensor
    dual: Tensor
    residuals: Tensor
    edits: tuple[int, ...]
    form: ClassVar[str] = "solved"
    linear: ClassVar[str] = "residuals"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.residuals.shape[0], self.keys.shape[0]

    def low_rank(self) -> LowRankChange:
        """See :class:`Change`."""
        # Contiguous, as in files: the last bit of a product depends on its factors' memory layout.
        keys, dual = self.keys.contiguous(), self.dual.contiguous()
        gram = keys.T @ dual
        system = torch.eye(gram.shape[0], dtype=gram.dtype) + gram
        # Delta = R system^-1 S^T; the system is symmetric up to rounding, not exactly.
        left = torch.linalg.solve(system.T, self.residuals.contiguous().T).T
        return LowRankChange(left, dual, (-1,) * self.columns)

    def own_keys(self) -> Tensor:
        """See :class:`Change`."""
        own = torch.tensor([edit >= 0 for edit in self.edits], dtype=torch.bool)
        return self.keys[:, own].double()

    def problem(self, edits: int) -> str:
        """See :class:`Change`."""
        if self.dual.shape != self.keys.shape:
            return "has keys and dual of different shapes"
        return super().problem(edits)


@dataclass(frozen=True)
class LowRankChange(_Columns):
    """Delta = left right^T, each column belonging to one edit (ROME) or to none in particular (-1)."""

    left: Tensor  # (d_out, r)
    right: Tensor  # (d_in, r)
    edits: tuple[int, ...]
    form: ClassVar[str] = "low-rank"
    linear: ClassVar[str] = "left"

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[0]

    def delta(self) -> Tensor:
        """See :class:`Change`."""
        return self.left.contiguous() @ self.right.contiguous().T

    def low_rank(self) -> LowRankChange:
        """See :class:`Change`."""
        return self

    @classmethod
    def beside(cls, changes: Sequence[LowRankChange]) -> LowRankChange:
        """Sum changes by putting their columns side by side."""
        return cls(
            torch.cat([each.left for each in changes], dim=1),
            torch.cat([each.right for each in changes], dim=1),
            tuple(edit for each in changes for edit in each.edits),
        )

    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> Self | None:
        """See :class:`Change`."""
        if -1 in self.edits and not gone <= set(self.edits):
            raise DataError(
                "is a sum that does not keep its edits apart; drop the edit from the patch it came "
                "from and merge again"
            )
        return super().keeping(places, gone)


@dataclass(frozen=True)
class DenseChange(Change):
    """An unstructured change (fine-tuning): Delta itself, (d_out, d_in), or (d,) for a vector."""

    change: Tensor
    form: ClassVar[str] = "dense"

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Change`."""
        return tuple(self.change.shape)

    @property
    def layout(self) -> None:
        """See :class:`Change`."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Change`."""
        return {"delta": self.change}

    def delta(self) -> Tensor:
        """See :class:`Change`."""
        return self.change

    def scaled(self, factor: float) -> DenseChange:
        """See :class:`Change`. Computed in float64."""
        return DenseChange(self.change.double() * factor)

    def sliced(self, rows: Tensor | None, columns: Tensor | None) -> DenseChange:
        """See :class:`Change`."""
        return DenseChange(_taken(self.change, rows, columns).contiguous())

    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> DenseChange:
        """See :class:`Change`."""
        if gone:
            raise DataError(
                "is dense, nothing in it belongs to one edit; compute the patch again without that edit"
            )
        return self


@dataclass(frozen=True)
class SlicedChange(Change):
    """Rows and columns of a change with factors; its edits stay separable and its Delta exact.

    Slicing the factors would give the same numbers except for the last bit of a product, and solving
    again over fewer inputs would give different ones.

    Attributes:
        whole: the change that was sliced.
        rows, columns: the kept indices, ascending; None for all.
    """

    whole: Change
    rows: Tensor | None
    columns: Tensor | None
    form: ClassVar[str] = "sliced"

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Change`."""
        kept = (self.rows, self.columns)
        return tuple(
            size if index is None else len(index)
            for size, index in zip(self.whole.shape, kept, strict=False)
        )

    @property
    def layout(self) -> Any:
        """See :class:`Change`."""
        return self.whole.layout

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`Change`."""
        return self.whole.tensors() | super().tensors()

    def low_rank(self) -> LowRankChange | None:
        """See :class:`Change`."""
        whole = self.whole.low_rank()
        if whole is None:
            return None
        left = _taken(whole.left, self.rows, None)
        return LowRankChange(left, _taken(whole.right, self.columns, None), whole.edits)

    def delta(self) -> Tensor:
        """See :class:`Change`."""
        return _taken(self.whole.delta(), self.rows, self.columns)

    def scaled(self, factor: float) -> SlicedChange:
        """See :class:`Change`."""
        return replace(self, whole=self.whole.scaled(factor))

    def sliced(self, rows: Tensor | None, columns: Tensor | None) -> SlicedChange:
        """See :class:`Change`."""
        return SlicedChange(
            self.whole, _composed(self.rows, rows), _composed(self.columns, columns)
        )

    def keeping(self, places: Mapping[int, int], gone: Set[int] = frozenset()) -> Change | None:
        """See :class:`Change`."""
        whole = self.whole.keeping(places, gone)
        return None if whole is None else replace(self, whole=whole)

    def own_keys(self) -> Tensor | None:
        """See :class:`Change`."""
        keys = self.whole.own_keys()
        return None if keys is None else _taken(keys, self.columns, None)

    def problem(self, edits: int) -> str:
        """See :class:`Change`."""
        for size, index in zip(self.whole.shape, (self.rows, self.columns), strict=False):
            if index is not None and (wrong := wrong_indices(index, size)):
                return wrong
        return self.whole.problem(edits)


def changed(base: Tensor, changes: Iterable[Change], transposed: bool = False) -> Tensor:
    """Add changes to a tensor: the sum is taken in float64 and rounded once to the tensor's own type.

    Args:
        base: the tensor as the model stores it.
        changes: of shape (d_out, d_in).
        transposed: whether the model stores (d_in, d_out).

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


def _taken(values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    values = values if rows is None else values[rows]
    return values if columns is None else values[:, columns]


def _composed(first: Tensor | None, then: Tensor | None) -> Tensor | None:
    if first is None or then is None:
        return then if first is None else first
    return first[then]
