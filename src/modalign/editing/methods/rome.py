"""ROME: one edit at a time in one layer, each a change of rank one.

Meng et al., *Locating and Editing Factual Associations in GPT*, arXiv 2202.05262:

    Delta = (v* - v) u^T / (k . u),   u = C0^-1 k

With ``key = "one"`` (r-ROME, arXiv 2403.07175) the same averaged key gives u, k and v. The released code
takes u from the averaged key, but k and v from the bare prompt's (``key = "mixed"``); its denominator can
come close to zero, and the update then disables the model.

With ``keys = "rows"`` every rewriting prompt has a key of its own, and the change is the smallest, in the
metric of C0, that adds the same vector to the output for each of them; its rank is theirs.

    Delta = V (K^T C0^-1 K)^-1 (C0^-1 K)^T
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from modalign.editing.computation import Computation, Solution
from modalign.editing.config import ValueConfig
from modalign.editing.engine.keys import read_bare_keys, read_keys, read_outputs
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.engine.values import Value
from modalign.editing.methods.base import ValueMethod
from modalign.editing.methods.closed_form import each_row
from modalign.patches.changes import LowRankChange

SITE: Site = "ffn"
SAME = 1e-2  # share of the largest eigenvalue below which the rows' keys count as the same


class ROMEConfig(ValueConfig):
    """GPT-J's values of the released code.

    Attributes:
        key: ``one`` key for everything, or the released code's ``mixed`` use.
    """

    depth: tuple[float, float] = (5 / 28, 5 / 28)
    steps: int = Field(default=20, ge=1)
    clamp: float = Field(default=4.0, gt=0)
    key: Literal["one", "mixed"] = "one"


class ROME(ValueMethod):
    """See the module."""

    name: ClassVar[str] = "rome"
    title: ClassVar[str] = "ROME"
    config_class: ClassVar[type[ValueConfig]] = ROMEConfig
    config: ROMEConfig

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return only the last of those chosen, as ROME writes one layer."""
        return super().layers(depth)[-1:]

    def solve(self, computation: Computation) -> Solution:
        """Solve one edit after another, each on the weights that the ones before left."""
        spec, plan = computation.spec, computation.plan
        (layer,) = plan.layers
        name = spec.weight_name(layer)
        lefts, rights, values = [], [], []
        owners: list[int] = []
        for number, request in enumerate(plan.requests):
            plan.tell("edits", number, len(plan.requests))
            value, left, right = self._one(computation, layer, request)
            computation.weights.add(name, left @ right.T, spec.transposed(layer))
            lefts.append(left)
            rights.append(right)
            owners += [plan.owners[number]] * left.shape[1]
            values.append(value)
        plan.tell("edits", len(plan.requests), len(plan.requests))
        change = LowRankChange(torch.cat(lefts, dim=1), torch.cat(rights, dim=1), tuple(owners))
        return Solution({name: change}, values)

    def _one(
        self, computation: Computation, layer: int, request: Request
    ) -> tuple[Value, Tensor, Tensor]:
        spec = computation.spec
        [value] = computation.values(layer, (SITE,), self.config.value_settings(), [request])
        factor = computation.key_statistics.factor(layer)
        if self.config.keys == "rows":
            rows = each_row([request])[0]
            keys = read_keys(spec, layer, rows)
            missing = value.deltas[SITE].double()[:, None].expand(-1, keys.shape[1])
            directions = factor.solve(keys)
            return value, missing @ _inverse(keys.T @ directions), directions
        key = read_keys(spec, layer, [request], grouped=False)[:, 0]
        direction = factor.solve(key[:, None])[:, 0]
        direction = direction / direction.norm()
        if self.config.key == "mixed":
            key = read_bare_keys(spec, layer, [request])[:, 0]
            current = read_outputs(spec, layer, SITE, [request])[:, 0]
        else:
            current = _output_of(spec, layer, key)
        left = (value.wanted(SITE).double() - current) / (key @ direction)
        return value, left[:, None], direction[:, None]


def _inverse(gram: Tensor) -> Tensor:
    """Return the pseudo-inverse of K^T C0^-1 K, (r, r), without directions in which the keys nearly coincide."""
    return torch.linalg.pinv(gram, rtol=SAME, hermitian=True)


def _output_of(spec: ModelSpec, layer: int, key: Tensor) -> Tensor:
    """Return the projection's output for a key: W k + b, (D,)."""
    module = spec.projection(layer, SITE)
    weight = module.weight.detach().double().cpu()
    weight = weight.T if spec.transposed(layer) else weight
    bias = module.bias.detach().double().cpu() if module.bias is not None else 0.0
    return weight @ key + bias
