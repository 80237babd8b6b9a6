"""Records of several roles in one batch: forget and retain, anchor and positive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modalign.data.batching import BatchOrder
from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.training.recipes import of_selector
from modalign.training.settings import Stage


@dataclass(frozen=True)
class Roles:
    """Samples of all roles, role by role; a record with two roles occurs twice.

    Attributes:
        names: of the roles.
        samples: of all.
        of: (len(samples),) number of each one's role.
        keys: (len(samples),) number of each one's group.
        matched: the records of a batch belong together by their group; ``all``: every record of it.
    """

    names: tuple[str, ...]
    samples: list[Sample]
    of: np.ndarray
    keys: np.ndarray
    matched: bool | Literal["all"]

    @classmethod
    def choose(cls, stage: Stage, samples: Sequence[Sample], text: Sequence[Sample] = ()) -> Roles:
        """Return the records of a stage's roles.

        Raises:
            UsageError: a role has no record, or matched roles share no group.
        """
        pools = [of_selector(samples, data, stage, text) for data in stage.roles.values()]
        chosen = [sample for pool in pools for sample in pool]
        groups = [sample.record.group or sample.record.id for sample in chosen]
        roles = cls(
            tuple(stage.roles),
            chosen,
            np.repeat(np.arange(len(pools)), [len(pool) for pool in pools]),
            np.unique(np.array(groups, dtype=str), return_inverse=True)[1],
            stage.matched,
        )
        if not roles.usable().any():
            raise UsageError(
                f"stage {stage.name!r}: no group has a record of each of the roles "
                f"{', '.join(roles.names)}; give records that go together the same group"
            )
        return roles

    def labels(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return roles and groups of samples, (n,) each."""
        return torch.from_numpy(self.of[list(indices)]), torch.from_numpy(self.keys[list(indices)])

    def by_key(self, role: int | None) -> dict[int, list[int]]:
        """Return group -> indices of the role's samples; None: of all roles."""
        found = defaultdict(list)
        for place in np.flatnonzero((self.of == role) | (role is None)).tolist():
            found[int(self.keys[place])].append(place)
        return found

    def usable(self) -> np.ndarray:
        """Return (len(samples),) bool: all, or if matched those of groups with a record of every role."""
        if not self.matched:
            return np.ones(len(self.of), dtype=bool)
        of_role = (self.keys[self.of == role] for role in range(len(self.names)))
        return np.isin(self.keys, reduce(np.intersect1d, of_role))

    def largest_group(self) -> int:
        """Return the most records of a group that can be used."""
        return int(np.bincount(self.keys[self.usable()]).max())

    def order(self, batch_size: int, seed: int) -> RoleOrder:
        """Return the endless, seeded sequence of batches.

        Raises:
            UsageError: a batch has no room for a record of every role.
        """
        if batch_size < len(self.names):
            raise UsageError(
                f"a batch of {batch_size} has no room for the roles {', '.join(self.names)}; raise "
                "training.batch_size"
            )
        if self.matched == "all" and batch_size < (largest := self.largest_group()):
            raise UsageError(
                f"a batch of {batch_size} has no room for a group of {largest} records; raise "
                "training.batch_size"
            )
        return RoleOrder(self, batch_size, seed)


class RoleOrder:
    """Batches of records of all roles, in equal numbers (the first roles get the remainder).

    Matched ones: records of the first role with a partner each of the others, or with ``all`` of their group.
    """

    def __init__(self, roles: Roles, batch_size: int, seed: int) -> None:
        self.roles, self.seed = roles, seed
        count, matched, usable = len(roles.names), roles.matched, roles.usable()
        self.partners = [roles.by_key(role) for role in range(1, count)] if matched else []
        self.whole = roles.by_key(None) if matched == "all" else {}
        self.places, self.orders = [], []
        for role in range(1 if matched else count):
            size = batch_size // count + (not matched and role < batch_size % count)
            places = np.flatnonzero((roles.of == role) & usable)
            if matched == "all":  # one for each group
                size = batch_size // roles.largest_group()
                places = places[np.unique(roles.keys[places], return_index=True)[1]]
            self.places.append(places)
            own = [roles.samples[place] for place in places]
            self.orders.append(BatchOrder.of(own, size, seed))

    def batch(self, step: int) -> list[int]:
        """Return a global step's sample indices, role by role; matched ones in one order."""
        found = [
            int(places[i])
            for places, order in zip(self.places, self.orders, strict=True)
            for i in order.batch(step)
        ]
        rng = np.random.default_rng([self.seed, step, 1709])
        keys = self.roles.keys[found].tolist()
        if self.whole:
            return [place for key in dict.fromkeys(keys) for place in self.whole[key]]
        for partners in self.partners:
            found += [partners[key][int(rng.integers(len(partners[key])))] for key in keys]
        return found
