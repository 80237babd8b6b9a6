"""The solver of MEMIT and PMET: least squares on the edits, held back by lambda C0.

Delta = R K^T (lambda C0 + K K^T)^-1
"""

from __future__ import annotations

from torch import Tensor

from modalign.editing.computation import Computation
from modalign.editing.config import RidgeConfig
from modalign.editing.methods.closed_form import ClosedForm
from modalign.patches.changes import SolvedChange


class Ridge(ClosedForm):
    """Closed form with a ridge of key statistics."""

    config: RidgeConfig

    def change(
        self, computation: Computation, layer: int, keys: Tensor, residuals: Tensor
    ) -> SolvedChange:
        """See :class:`ClosedForm`."""
        weight = self.config.weight(len(keys))
        dual = computation.key_statistics.factor(layer).solve(keys) / weight
        return SolvedChange(keys, dual, residuals, computation.plan.owners)
