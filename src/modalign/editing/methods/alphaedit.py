"""AlphaEdit: MEMIT's values, written only in directions that other keys do not use.

Fang et al., *AlphaEdit: Null-Space Constrained Knowledge Editing*, arXiv 2410.02355. The released code
solves an unsymmetric d x d system in float32. Its solution lies in the null space's basis U0, so the
same update is

    Delta^T = U0 (U0^T (K K^T + Kp Kp^T) U0 + L2 I)^-1 U0^T K R^T

which is symmetric and positive definite; with n keys in all it is an n x n system. Kp are the keys of
the earlier patches that this one is computed on top of; they are kept in the patch with zero residuals.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from modalign.editing.computation import Computation
from modalign.editing.config import ValueConfig
from modalign.editing.engine.solve import null_space, project
from modalign.editing.methods.closed_form import ClosedForm
from modalign.patches.changes import SolvedChange


class AlphaEditConfig(ValueConfig):
    """MEMIT's values, with the authors' threshold and L2.

    Attributes:
        null_threshold: directions with eigenvalues of C0 below it may be written to.
        null_share: instead of it, the share of the keys' energy that these directions may hold together.
        l2: weight of the update's own size.
        l2_share: instead of it, relative to the edits' keys' mean energy in the null space.
    """

    null_threshold: float = Field(default=2e-2, gt=0)
    null_share: float | None = Field(default=None, gt=0, lt=1)
    l2: float = Field(default=10.0, gt=0)
    l2_share: float | None = Field(default=None, gt=0)


class AlphaEdit(ClosedForm):
    """See the module."""

    name: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = "AlphaEdit"
    config_class: ClassVar[type[ValueConfig]] = AlphaEditConfig
    config: AlphaEditConfig

    def change(
        self,
        computation: Computation,
        layer: int,
        keys: Tensor,
        residuals: Tensor,
        edits: tuple[int, ...],
    ) -> SolvedChange:
        """See :class:`ClosedForm`."""
        earlier = computation.earlier_keys(layer)
        both = torch.cat([keys, earlier], dim=1)
        config = self.config
        spectrum = computation.key_statistics.spectrum(layer)
        basis = null_space(spectrum, config.null_threshold, config.null_share)
        computation.plan.notes.add(
            f"layer {layer}: null space of {basis.shape[1]} of {len(keys)} directions"
        )
        owners = edits + (-1,) * earlier.shape[1]
        still = residuals.new_zeros(len(residuals), earlier.shape[1])
        held = float((basis.T @ keys).square().sum(0).mean())
        l2 = config.l2 if config.l2_share is None else config.l2_share * held
        dual = project(basis, both, l2)
        return SolvedChange(both, dual, torch.cat([residuals, still], dim=1), owners)
