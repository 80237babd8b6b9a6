"""The methods: which objective terms read the records to forget and those to retain.

A method is just a training stage; only ``edit`` goes through :mod:`modalign.editing` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modalign.errors import UsageError, choose
from modalign.training.settings import Stage

FORGET, RETAIN = "forget", "retain"
Objective = dict[str, float | dict[str, Any]]
_KEEP: Objective = {"cross_entropy": {"role": RETAIN}}


def _term(
    name: str, keep: bool = True, **defaults: Any
) -> Callable[[int, dict[str, Any]], Objective]:
    """Return a method with one term on the records to forget, and the loss on those to retain."""

    def made(layer: int, given: dict[str, Any]) -> Objective:
        return {name: {"role": FORGET, **defaults, **given}, **(_KEEP if keep else {})}

    return made  # fmt: skip


def _rmu(layer: int, given: dict[str, Any]) -> Objective:
    chosen = {"layer": layer, **given}
    held = {"layer": chosen["layer"], "reference": "start", "distance": "mse", "at": "tokens"}
    return {"rmu": {"role": FORGET, **chosen}, "hidden": {"role": RETAIN, "weight": 100.0, **held}}


# Options are the authors' if their scale follows the model's, else those of section "Measured" in docs/unlearn.md.
OBJECTIVES: Mapping[str, Callable[[int, dict[str, Any]], Objective]] = {
    "ascent": _term("ascent", keep=False),
    "difference": _term("ascent", limit=6.0),
    "npo": _term("npo", beta=0.5),
    "simnpo": _term("simnpo", beta=2.5),
    "undial": _term("undial", beta=10.0),
    "rmu": _rmu,
}
METHODS = (*OBJECTIVES, "edit", "retrain")


def check_method(name: str) -> None:
    """Refuse an unknown method.

    Raises:
        UsageError: there is none; the message gives the nearest name.
    """
    if name not in METHODS:
        raise UsageError(f"no method {name!r}: {choose(name, METHODS)}")


def stage_of(method: str, layers: int, options: dict[str, Any]) -> Stage:
    """Return the stage of a method that trains.

    Args:
        method: other than ``edit``.
        layers: decoder layers of the model; RMU reads the middle one.
        options: of its term.
    """
    if method == "retrain":
        return Stage(name=method, roles={RETAIN: f"domain:{RETAIN}"})
    objective = OBJECTIVES[method](max(layers // 2, 1), options)
    names = (FORGET,) if method == "ascent" else (FORGET, RETAIN)
    roles = {name: f"domain:{name}" for name in names}
    return Stage(name=method, objective=objective, roles=roles)
