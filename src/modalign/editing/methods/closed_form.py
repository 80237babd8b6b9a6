"""What MEMIT, PMET and AlphaEdit share: values once, then layer by layer read, spread, solve, write."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from modalign.editing.config import ValueConfig
from modalign.editing.engine.keys import read_keys, read_outputs
from modalign.editing.engine.spec import Site
from modalign.editing.job import Job, Solved
from modalign.editing.methods.base import Method
from modalign.patches.changes import SolvedChange


class ClosedForm(Method):
    """Write all edits at once, one layer after the other.

    Class attributes:
        reads: the site whose output the residual is taken of: what is wanted less what is there.
        relax: PMET's schedule of the target's weight.
    """

    config: ValueConfig
    reads: ClassVar[Site]
    relax: ClassVar[bool] = False

    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Where the value optimiser adds its vectors, at the last layer."""

    @abstractmethod
    def spread(self, left: int) -> float:
        """What the residual is divided by when ``left`` layers are still to be written."""

    @abstractmethod
    def solve(self, job: Job, layer: int, keys: Tensor, residuals: Tensor) -> SolvedChange:
        """The change of one layer's weight.

        Args:
            job: for C0.
            layer: which.
            keys: K, (d_in, n).
            residuals: R, (D, n), already spread.
        """

    def edit(self, job: Job) -> Solved:
        """See :class:`Method`."""
        layers = job.layers
        requests = job.requests(self._contexts(job))
        job.require_covariance(self.config.tokens, self.config.image_weight)
        job.start()
        values = job.values(
            layers[-1], self.sites(), self.config.value_settings(self.relax), requests
        )
        wanted = torch.stack([value.wanted(self.reads) for value in values], dim=1).double()
        changes: dict[str, SolvedChange] = {}
        for number, layer in enumerate(layers):
            job.tell("writing", number, len(layers))
            keys = read_keys(job.spec, layer, requests)
            missing = wanted - read_outputs(job.spec, layers[-1], self.reads, requests)
            change = self.solve(job, layer, keys, missing / self.spread(len(layers) - number))
            name = job.spec.weight_name(layer)
            job.weights.add(name, change.delta(), job.spec.transposed(layer))
            changes[name] = change
        job.tell("writing", len(layers), len(layers))
        return Solved(changes, requests, values)

    def _contexts(self, job: Job) -> Sequence[str]:
        return job.contexts(self.config.contexts)
