"""Server rules: pure functions over named tensors, by name.

A rule turns the clients' updates into the step that the server takes::

    rule(updates, state, **options) -> (step, state)

``step`` is added to the server's weights; ``state`` holds the server's moments between rounds, as ``m:NAME`` and
``v:NAME``. Third parties add rules by entry points in the group ``modalign.server_rules``.

D is the mean of the clients' changes, weighted by records in ``fedavg`` and ``fedavgm``. Sources: FedAvg (arXiv
1602.05629), FedAvgM (1909.06335), the adaptive rules (2003.00295, without bias correction, as FedMLLM has them),
median and trimmed mean (1803.01498), Krum (1703.02757).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from modalign.named import Named

Tensors = dict[str, Tensor]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]

server_rule = Named("server rule", "modalign.server_rules", __name__)


@dataclass(frozen=True)
class Update:
    """What a client's training changed.

    Attributes:
        client: its name.
        delta: name -> weights after minus before.
        records: that it trained on.
    """

    client: str
    delta: Tensors
    records: int


def mean(updates: Sequence[Update], weighted: bool) -> Tensors:
    """Return D, the mean change in float64."""
    total = sum(update.records if weighted else 1 for update in updates)
    found: Tensors = {
        name: torch.zeros_like(t, dtype=torch.float64) for name, t in updates[0].delta.items()
    }
    for update in updates:
        for name, delta in update.delta.items():
            found[name] += delta.double() * ((update.records if weighted else 1) / total)
    return found


@server_rule("fedavg", linear=True)
def fedavg(
    updates: Sequence[Update], state: Tensors, *, weighted: bool = True
) -> tuple[Tensors, Tensors]:
    """Step by D."""
    return mean(updates, weighted), {}


@server_rule("fedavgm")
def fedavgm(
    updates: Sequence[Update], state: Tensors, *, momentum: Share = 0.9, eta: Positive = 1.0
) -> tuple[Tensors, Tensors]:
    """Step by eta m, with m <- b1 m + (1 - b1) D."""
    moments = _blended("m", mean(updates, True), state, momentum)
    return {name: eta * moments[f"m:{name}"] for name in updates[0].delta}, moments


def _blended(kind: str, values: Tensors, state: Tensors, decay: float) -> Tensors:
    old = {
        name: state.get(f"{kind}:{name}", torch.zeros_like(value)) for name, value in values.items()
    }
    return {
        f"{kind}:{name}": decay * old[name] + (1 - decay) * value for name, value in values.items()
    }


def _adaptive(second: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Any]:
    """Return the rule that steps by eta m / (sqrt(v) + tau), with v <- second(v, D^2), starting at tau^2."""

    def rule(
        updates: Sequence[Update],
        state: Tensors,
        *,
        momentum: Share = 0.9,
        decay: Share = 0.99,
        eta: Positive = 1e-3,
        tau: Positive = 1e-3,
        start: float | None = None,
        weighted: bool = False,
    ) -> tuple[Tensors, Tensors]:
        change = mean(updates, weighted)
        first = tau**2 if start is None else start
        new = _blended("m", change, state, momentum)
        for name, delta in change.items():
            old = state.get(f"v:{name}", torch.full_like(delta, first))
            new[f"v:{name}"] = second(old, delta.square(), decay)
        return {n: eta * new[f"m:{n}"] / (new[f"v:{n}"].sqrt() + tau) for n in change}, new

    return rule


fedadam = server_rule("fedadam")(
    _adaptive(lambda v, square, decay: decay * v + (1 - decay) * square)
)
fedyogi = server_rule("fedyogi")(
    _adaptive(lambda v, square, decay: v - (1 - decay) * square * torch.sign(v - square))
)
fedadagrad = server_rule("fedadagrad")(_adaptive(lambda v, square, decay: v + square))


# ---------------------------------------------------------------------- robust rules


def _trimmed(updates: Sequence[Update], cut: int) -> Tensors:
    """Return the mean of each number over clients without the ``cut`` smallest and largest."""
    found = {}
    for name in updates[0].delta:
        ordered = torch.stack([update.delta[name].double() for update in updates]).sort(0).values
        found[name] = ordered[cut : len(updates) - cut].mean(0)
    return found


@server_rule("median", robust=True)
def median(updates: Sequence[Update], state: Tensors) -> tuple[Tensors, Tensors]:
    """Step by each number's median over clients; for an even number of them, the mean of the middle two."""
    return _trimmed(updates, (len(updates) - 1) // 2), {}


@server_rule("trimmed_mean", robust=True)
def trimmed_mean(
    updates: Sequence[Update], state: Tensors, *, share: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
) -> tuple[Tensors, Tensors]:
    """Step by each number's mean without this share of clients at either end."""
    return _trimmed(updates, int(share * len(updates))), {}


@server_rule("krum", robust=True)
def krum(
    updates: Sequence[Update],
    state: Tensors,
    *,
    faulty: Annotated[int, Field(ge=0)] | None = None,
    keep: Annotated[int, Field(ge=1)] = 1,
) -> tuple[Tensors, Tensors]:
    """Step by the mean of the ``keep`` updates with the nearest neighbours, whatever the others are.

    An update's score is the sum of its squared distances to the n - faulty - 2 nearest; without ``faulty``,
    as many are tolerated as Krum can: (n - 3) / 2.
    """
    n = len(updates)
    bad = max((n - 3) // 2, 0) if faulty is None else faulty
    flat = torch.stack(
        [torch.cat([t.double().flatten() for t in u.delta.values()]) for u in updates]
    )
    squares = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squares.sort(1).values[:, 1 : 1 + max(n - bad - 2, 1)].sum(1)
    chosen = nearest.argsort(stable=True)[:keep].tolist()
    return mean([updates[k] for k in sorted(chosen)], False), {}
