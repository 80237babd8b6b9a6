"""Records of several roles in one batch: forget and retain, anchor and positive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Samples of all roles, one role after the other; a record that has two stands there twice.

    Attributes:
        names: of the roles.
        samples: of all.
        of: (len(samples),) number of each one's role.
        keys: (len(samples),) number of each one's group.
        matched: the records of a batch go together by their group.
    """

    names: tuple[str, ...]
    samples: list[Sample]
    of: np.ndarray
    keys: np.ndarray
    matched: bool

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
        if roles.matched and not roles._complete():
            raise UsageError(
                f"stage {stage.name!r}: no group has a record of each of the roles "
                f"{', '.join(roles.names)}; give records that go together the same group"
            )
        return roles

    def labels(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Roles and groups of some samples, (n,) each."""
        return torch.from_numpy(self.of[list(indices)]), torch.from_numpy(self.keys[list(indices)])

    def _places(self, role: int) -> np.ndarray:
        return np.flatnonzero(self.of == role)

    def _by_key(self, role: int) -> dict[int, list[int]]:
        found = defaultdict(list)
        for place in self._places(role):
            found[int(self.keys[place])].append(int(place))
        return found

    def _complete(self) -> set[int]:
        """Groups with a record of every role."""
        return set.intersection(*(set(self._by_key(role)) for role in range(len(self.names))))

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
        return RoleOrder(self, batch_size, seed)


class RoleOrder:
    """Batches of records of all roles, in equal numbers (the first roles get what is left over)."""

    def __init__(self, roles: Roles, batch_size: int, seed: int) -> None:
        self.roles, self.seed = roles, seed
        count = len(roles.names)
        complete = roles._complete() if roles.matched else set()
        self.partners = [roles._by_key(role) for role in range(1, count)] if roles.matched else []
        self.places, self.orders = [], []
        for role in range(1 if roles.matched else count):
            size = batch_size // count + (not roles.matched and role < batch_size % count)
            places = [
                p for p in roles._places(role) if not complete or int(roles.keys[p]) in complete
            ]
            self.places.append(np.array(places))
            own = [roles.samples[place] for place in places]
            self.orders.append(BatchOrder.of(own, size, seed))

    def batch(self, step: int) -> list[int]:
        """Sample numbers of the batch of a global step, role by role; matched ones in one order."""
        found = [
            int(places[i])
            for places, order in zip(self.places, self.orders, strict=True)
            for i in order.batch(step)
        ]
        rng = np.random.default_rng([self.seed, step, 1709])
        keys = self.roles.keys[found].tolist()
        for partners in self.partners:
            found += [partners[key][int(rng.integers(len(partners[key])))] for key in keys]
        return found
