"""Merge methods by name: small pure functions over one tensor's deltas.

A method is ``method(deltas, weights, **options)`` and yields, for each block of ``deltas``, the merged delta
(float64): the merged tensor is the origin plus that, rounded once. Its keyword-only parameters are its options.
modalign's own methods are in :mod:`modalign.merging.methods`, a file each; third parties add theirs by entry
points in the group ``modalign.merge_methods``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from modalign.configuration import explained
from modalign.errors import UsageError, choose
from modalign.merging.deltas import Deltas
from modalign.named import options_of, source_of

ENTRY_POINT_GROUP = "modalign.merge_methods"
OWN_METHODS = "modalign.merging.methods"
Default = Literal["shares", "ones"]
Function = Callable[..., Iterator[Tensor]]

_METHODS: dict[str, MergeMethod] = {}
F = TypeVar("F", bound=Function)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: exact.
        function: see this module.
        needs_base: deltas are differences from the base; else from the first parent.
        default: each parent's weight where none is given: 1 / N, or 1.
        most: parents that it takes at most; None for any number.
        options: its keyword-only parameters with types and defaults.
    """

    name: str
    function: Function
    needs_base: bool
    default: Default
    most: int | None
    options: type[BaseModel]

    @property
    def about(self) -> str:
        """The first line of its description."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, defaults filled in.

        Raises:
            UsageError: an unknown one, or a wrong value.
        """
        try:
            return self.options.model_validate(dict(given)).model_dump()
        except ValidationError as error:
            there = ", ".join(self.options.model_fields) or "there are none"
            raise UsageError(
                f"merge method {self.name!r}: {explained(error)}; its options are {there}"
            ) from error

    def merged(
        self, deltas: Deltas, weights: Mapping[str, float], options: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """Yield the merged delta of each block."""
        return self.function(deltas, weights, **options)


def merge_method(
    name: str, *, needs_base: bool = True, default: Default = "ones", most: int | None = None
) -> Callable[[F], F]:
    """Decorator: register a method under an exact name.

    Raises:
        UsageError: the name is taken.
    """

    def register(function: F) -> F:
        known = _METHODS.get(name)
        if known is not None and source_of(known.function) != source_of(function):
            raise UsageError(f"merge method {name!r} is registered twice")
        options = options_of(name, function, _Options)
        _METHODS[name] = MergeMethod(name, function, needs_base, default, most, options)
        return function

    return register


@cache
def _load_all() -> None:
    own = importlib.import_module(OWN_METHODS)
    for module in pkgutil.iter_modules(own.__path__):
        importlib.import_module(f"{OWN_METHODS}.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()
        if entry.name not in _METHODS:
            raise UsageError(
                f"entry point {entry.name!r} ({entry.value}) registers no merge method of that name; "
                "decorate the function with @merge_method"
            )


def merge_methods() -> dict[str, MergeMethod]:
    """Return every known method by name."""
    _load_all()
    return dict(sorted(_METHODS.items()))


def method_named(name: str) -> MergeMethod:
    """Return the method of exactly this name.

    Raises:
        UsageError: there is none; the message names the nearest and lists all.
    """
    known = merge_methods()
    if name not in known:
        raise UsageError(f"no merge method is called {name!r}; {choose(name, known)}")
    return known[name]
