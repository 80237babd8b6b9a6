"""MEMIT: optimise the block's output, and write it to the FFN projections of several layers.

Meng et al., *Mass-Editing Memory in a Transformer*, arXiv 2210.07229. The solver is least squares on the
edits, regularised by lambda C0:

    Delta = R K^T (lambda C0 + K K^T)^-1
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from modalign.editing.computation import Computation
from modalign.editing.config import ValueConfig
from modalign.editing.methods.closed_form import ClosedForm
from modalign.patches.changes import SolvedChange


class MEMITConfig(ValueConfig):
    """GPT-J's values of the paper.

    Attributes:
        covariance_weight: lambda, how much the keys of other text count; None for ``per_width``
            times the length of a key. Published values are close to the key's length: MEMIT has
            15,000 for 16,384 on GPT-J, and 15,000 for 14,336 on Llama-3 8B.
        per_width: see ``covariance_weight``.
    """

    covariance_weight: float | None = Field(default=None, gt=0)
    per_width: float = Field(default=15_000 / 16_384, gt=0)

    def weight(self, width: int) -> float:
        """Return lambda for keys of this length."""
        if self.covariance_weight is not None:
            return self.covariance_weight
        return self.per_width * width


class MEMIT(ClosedForm):
    """See the module."""

    name: ClassVar[str] = "memit"
    title: ClassVar[str] = "MEMIT"
    config_class: ClassVar[type[MEMITConfig]] = MEMITConfig
    config: MEMITConfig

    def change(
        self,
        computation: Computation,
        layer: int,
        keys: Tensor,
        residuals: Tensor,
        edits: tuple[int, ...],
    ) -> SolvedChange:
        """See :class:`ClosedForm`."""
        weight = self.config.weight(len(keys))
        dual = computation.key_statistics.factor(layer).solve(keys) / weight
        return SolvedChange(keys, dual, residuals, edits)
