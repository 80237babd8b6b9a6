"""What a patch is: the change of each tensor, and where it comes from.

A closed-form editor solves, per weight ``W`` (d_out, d_in) and ``n`` edits with keys ``K`` (d_in, n)
and residuals ``R`` (d_out, n),

    Delta = R K^T (lambda C0 + K K^T)^-1 = R (I + K^T S)^-1 S^T,   S = (lambda C0)^-1 K

(the second form is Woodbury's identity). Storing ``K``, ``S`` and ``R`` instead of ``Delta`` keeps the
patch small and makes a single edit removable exactly: leave out its columns and solve again, without
the model and without C0. The null-space form of AlphaEdit is the same with ``S = P K / L2``, where
keys that only have to stay as they are have zero residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SolvedChange:
    """A closed-form change kept as what it was solved from. All tensors float64, on the CPU.

    Attributes:
        keys: K, (d_in, n).
        dual: S = (lambda C0)^-1 K, (d_in, n).
        residuals: R, (d_out, n); zero columns for keys that only have to stay as they are.
        edits: for each column the position of its edit in the header's list; -1 for a column of no
            edit of this patch (a key protected for an earlier one).
    """

    keys: Tensor
    dual: Tensor
    residuals: Tensor
    edits: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.residuals.shape[0], self.keys.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        """(left (d_out, n), right (d_in, n)) with Delta = left right^T."""
        gram = self.keys.T @ self.dual
        system = torch.eye(gram.shape[0], dtype=gram.dtype) + gram
        # Delta = R system^-1 S^T; the system is symmetric up to rounding, not exactly.
        left = torch.linalg.solve(system.T, self.residuals.T).T
        return left, self.dual

    def delta(self) -> Tensor:
        """Delta, (d_out, d_in)."""
        left, right = self.factors()
        return left @ right.T


@dataclass(frozen=True)
class LowRankChange:
    """Delta = left right^T, each column an edit's own (ROME), or of no edit in particular (-1)."""

    left: Tensor  # (d_out, r)
    right: Tensor  # (d_in, r)
    edits: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        """(left, right)."""
        return self.left, self.right

    def delta(self) -> Tensor:
        """Delta, (d_out, d_in)."""
        return self.left @ self.right.T


@dataclass(frozen=True)
class DenseChange:
    """A change without structure (fine-tuning): Delta itself, (d_out, d_in), or (d,) for a vector."""

    change: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.change.shape)

    def delta(self) -> Tensor:
        """Delta."""
        return self.change


Change = SolvedChange | LowRankChange | DenseChange


class BaseTensor(BaseModel):
    """A tensor that a patch expects in its base model.

    Attributes:
        sha256: of its shape and its values in float32 (float64 if stored so), see ``tensor_hash``:
            the same for a bfloat16 file and for what it becomes when loaded in float32.
        shape: as the model stores it.
        transposed: stored as (d_in, d_out), as GPT-2's Conv1D does; changes are always (d_out, d_in).
    """

    model_config = ConfigDict(extra="forbid")

    sha256: str
    shape: tuple[int, ...]
    transposed: bool = False


class EditRecord(BaseModel):
    """One edit of a patch, and how its computation went."""

    model_config = ConfigDict(extra="forbid")

    id: str
    subject: str
    prompt: str
    target: str
    truth: str | None = None
    image: str | None = None
    lookup: str | None = None  # how the lookup tokens were found: subject, last, visual
    steps: int | None = None  # evaluations of the value's optimisation
    probability: float | None = None  # of the target with the optimised value put in
    written: float | None = None  # the target's probability with the patch; least of its prompts
    value_norm: float | None = None  # |delta| / |initial value|
    warnings: tuple[str, ...] = ()


class PatchHeader(BaseModel):
    """Where a patch comes from and what it fits.

    Attributes:
        name: of the patch, a file's stem by default.
        kind: adapter, delta, structure or soup; editors make deltas.
        method: pmet, memit, ...; ``merge`` and ``drop`` of others keep it and say so in ``history``.
        base: the tensors it changes, as they must be before any patch.
        after: content hashes of the patches that must be applied below this one, lowest first.
        tokenizer: hash of the tokenizer whose tokens it was computed for.
        covariance: fingerprint of the key statistics (the same one makes patches jointly solvable).
        settings: the whole configuration of the method.
        contexts: the sentences put before the prompts.
        edits: one record each, in column order.
        history: what was done since (merged from, dropped), one line each.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    name: str
    kind: Literal["adapter", "delta", "structure", "soup"] = "delta"
    method: str
    model: str
    base: dict[str, BaseTensor]
    after: tuple[str, ...] = ()
    tokenizer: str | None = None
    covariance: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    contexts: tuple[str, ...] = ()
    edits: tuple[EditRecord, ...] = ()
    history: tuple[str, ...] = ()
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Patch:
    """A change of a base model: a header, and a change for every tensor it touches.

    Attributes:
        header: provenance and what it fits.
        changes: by the parameter's name in ``model.named_parameters()``.
    """

    header: PatchHeader
    changes: Mapping[str, Change] = field(default_factory=dict)

    def __radd__(self, model: nn.Module) -> nn.Module:
        """``model + patch``: a view of the model with this patch on top, see ``patches.apply.view``."""
        if not isinstance(model, nn.Module):
            return NotImplemented
        from modalign.patches.apply import view

        return view(model, self)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """``with patch.applied(model)``: the model's own weights changed, and then exactly as before."""
        from modalign.patches.apply import applied

        return applied(model, self)
