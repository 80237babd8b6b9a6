"""A patch: a named, reversible, composable change of a base model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from modalign.patches.apply import applied, view
from modalign.patches.header import PatchContent


@dataclass(frozen=True)
class Patch(PatchContent):
    """A patch that can be put on a model, see :class:`PatchContent` for what it holds."""

    def __radd__(self, model: nn.Module) -> nn.Module:
        """Make ``model + patch`` a view of the model with this patch on top, see ``patches.apply.view``."""
        if not isinstance(model, nn.Module):
            return NotImplemented
        return view(model, self)

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Change the model's own weights in ``with patch.applied(model)``, and restore them exactly."""
        return applied(model, self)
