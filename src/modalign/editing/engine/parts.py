"""Run rows in groups of similar width, since what follows the lookup tokens differs in length.

In one padded batch every row costs as much as the longest. A KL row ends at its lookup token, while a
rewriting row continues with the rest of the prompt, the end of a chat template and the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from modalign.editing.engine.forward import Base, Inputs, PartialForward, Row
from modalign.editing.engine.spec import Site

# Padded tokens that one more group must save: about as many as cost what reading all weights once costs.
SAVED = {"cpu": 48}
SAVED_ELSEWHERE = 512
MOST = 3  # groups at most


def groups(widths: Sequence[int], least: int) -> list[list[int]]:
    """Divide rows into groups that are run separately; each lists row numbers in ascending order.

    Args:
        widths: tokens of each row from its lookup token on.
        least: padded tokens that one more group must save.
    """
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    cuts = [0, len(order)]
    while len(cuts) <= MOST:
        saved, cut = max(
            (
                ((cut - start) * (widths[order[end - 1]] - widths[order[cut - 1]]), cut)
                for start, end in pairwise(cuts)
                for cut in range(start + 1, end)
            ),
            default=(0, 0),
        )
        if saved < least:
            break
        cuts = sorted([*cuts, cut])
    return [sorted(order[start:end]) for start, end in pairwise(cuts)]


@dataclass(frozen=True)
class Parts:
    """The bases of all rows, by group.

    Attributes:
        forward: runs them.
        rows: per group, the numbers of its rows, (B_g,).
        bases: per group, what :meth:`PartialForward.prepare` kept.
        count: number of rows.
    """

    forward: PartialForward
    rows: tuple[Tensor, ...]
    bases: tuple[Base, ...]
    count: int

    @classmethod
    def of(cls, forward: PartialForward, rows: Sequence[Row]) -> Parts:
        """Run the whole model once over each group, without gradients."""
        device = forward.spec.device
        least = SAVED.get(device.type, SAVED_ELSEWHERE)
        found = groups([len(row) - row.lookup for row in rows], least)
        bases = [
            forward.prepare(Inputs.of([rows[i] for i in group], forward.spec)) for group in found
        ]
        numbers = tuple(torch.tensor(group, device=device) for group in found)
        return cls(forward, numbers, tuple(bases), len(rows))

    @property
    def initial(self) -> dict[Site, Tensor]:
        """The output at the lookup token per site, (B, D)."""
        order = torch.cat(self.rows).argsort()
        return {
            site: torch.cat([base.initial[site] for base in self.bases])[order]
            for site in self.forward.sites
        }

    def logits(self, vectors: Mapping[Site, Tensor], where: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits with vectors added at the lookup token, (N, V), in ``spec.exact``.

        Args:
            vectors: per site, (B, D).
            where: N row numbers, and N positions counted from the lookup token.
        """
        rows, positions = where
        found, places = [], []
        for own, base in zip(self.rows, self.bases, strict=True):
            local = torch.full((self.count,), -1, device=own.device)
            local[own] = torch.arange(len(own), device=own.device)
            mine = (local[rows] >= 0).nonzero().squeeze(1)
            here = (local[rows[mine]], positions[mine])
            given = {site: vector[own] for site, vector in vectors.items()}
            found.append(self.forward.logits(base, given, here))
            places.append(mine)
        return torch.cat(found)[torch.cat(places).argsort()]

    def select(self, rows: Tensor) -> Parts:
        """Return some of the rows, renumbered."""
        new = torch.full((self.count,), -1, device=rows.device)
        new[rows] = torch.arange(len(rows), device=rows.device)
        numbers, bases = [], []
        for own, base in zip(self.rows, self.bases, strict=True):
            kept = (new[own] >= 0).nonzero().squeeze(1)
            if len(kept):
                numbers.append(new[own[kept]])
                bases.append(base.select(kept))
        return Parts(self.forward, tuple(numbers), tuple(bases), len(rows))
