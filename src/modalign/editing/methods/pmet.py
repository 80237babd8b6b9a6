"""PMET: optimise the attention's and the FFN's vectors together, but write only the FFN's.

Li et al., *PMET: Precise Model Editing in a Transformer*, arXiv 2308.08742. As in the released code,
the residual is read at the last layer's FFN output, and spread by the square root of the layers left.
On parallel blocks (GPT-J, GPT-NeoX) both vectors receive the same gradient, so that half of the shift is
written, which the spread makes up for; on sequential blocks the two vectors differ.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from modalign.editing.engine.spec import Site
from modalign.editing.methods.memit import MEMIT, MEMITConfig


class PMETConfig(MEMITConfig):
    """GPT-J's values in the authors' files."""

    steps: int = Field(default=30, ge=1)
    lr: float = Field(default=0.2, gt=0)
    kl: float = Field(default=1.0, ge=0)
    per_width: float = Field(default=6_000 / 16_384, gt=0)
    attention_vector: bool = True  # an ablation without it: MEMIT's loss at the FFN output
    spread: Literal["root", "equal"] = "root"  # another ablation: MEMIT's equal shares


class PMET(MEMIT):
    """MEMIT's solver with PMET's own values, residuals and spread; see the module."""

    name: ClassVar[str] = "pmet"
    title: ClassVar[str] = "PMET"
    config_class: ClassVar[type[MEMITConfig]] = PMETConfig
    config: PMETConfig
    reads: ClassVar[Site] = "ffn"
    relax: ClassVar[bool] = True

    def sites(self) -> tuple[Site, ...]:
        """Return both components' sites, or the FFN's alone."""
        return ("attention", "ffn") if self.config.attention_vector else ("ffn",)

    def spread(self, left: int) -> float:
        """Return the square root of the layers left, so that early layers carry more than an equal share."""
        return math.sqrt(left) if self.config.spread == "root" else float(left)
