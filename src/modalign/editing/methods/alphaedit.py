"""AlphaEdit: MEMIT's values, written only in directions that other keys do not use.

Fang et al., *AlphaEdit: Null-Space Constrained Knowledge Editing*, arXiv 2410.02355. The released code
solves an unsymmetric d x d system in float32. Its solution lies in the null space's basis U0, so the
same update is

    Delta^T = U0 (U0^T (K K^T + Kp Kp^T) U0 + L2 I)^-1 U0^T K R^T

symmetric and positive definite; with n keys in all it is an n x n system. Kp are the keys of earlier
patches, which this one is computed on top of: they are kept in the patch with zero residuals.
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
        null_threshold: eigenvalues of C0 below it are directions to write in.
        l2: weight of the update's own size.
    """

    null_threshold: float = Field(default=2e-2, gt=0)
    l2: float = Field(default=10.0, gt=0)


class AlphaEdit(ClosedForm):
    """See the module."""

    name: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = "AlphaEdit"
    config_class: ClassVar[type[ValueConfig]] = AlphaEditConfig
    config: AlphaEditConfig

    def change(
        self, computation: Computation, layer: int, keys: Tensor, residuals: Tensor
    ) -> SolvedChange:
        """See :class:`ClosedForm`."""
        earlier = computation.earlier_keys(layer)
        edits = computation.plan.owners + (-1,) * earlier.shape[1]
        both = torch.cat([keys, earlier], dim=1)
        basis = null_space(computation.key_statistics.matrix(layer), self.config.null_threshold)
        computation.plan.notes.add(
            f"layer {layer}: null space of {basis.shape[1]} of {len(keys)} directions"
        )
        still = residuals.new_zeros(len(residuals), earlier.shape[1])
        dual = project(basis, both, self.config.l2)
        return SolvedChange(both, dual, torch.cat([residuals, still], dim=1), edits)
