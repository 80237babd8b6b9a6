"""MEMIT: optimise the block's output, write it to the FFN projections of several layers.

Meng et al., *Mass-Editing Memory in a Transformer*, arXiv 2210.07229.
"""

from __future__ import annotations

from typing import ClassVar

from modalign.editing.config import RidgeConfig, linear_spread
from modalign.editing.engine.spec import Site
from modalign.editing.methods.ridge import Ridge


class MEMITConfig(RidgeConfig):
    """GPT-J's values of the paper."""


class MEMIT(Ridge):
    """See the module."""

    name: ClassVar[str] = "memit"
    title: ClassVar[str] = "MEMIT"
    config_class: ClassVar[type[RidgeConfig]] = MEMITConfig
    reads: ClassVar[Site] = "block"

    def sites(self) -> tuple[Site, ...]:
        """The block's output."""
        return ("block",)

    def spread(self, left: int) -> float:
        """Equal shares."""
        return linear_spread(left)
