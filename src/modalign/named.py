"""Small pure functions under exact names, with options: a registry that third parties add to by entry point.

server_rule = Named("server rule", "modalign.server_rules", "modalign.federation.rules")

@server_rule("fedavgm")
def fedavgm(updates, state, *, momentum=0.9, eta=1.0): ...

server_rule.find("fedavgm[momentum=0.5]")  # -> the function with this option
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from modalign.configuration import explained, read_yaml
from modalign.errors import UsageError, choose

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
_WITH_OPTIONS = re.compile(r"^(?P<name>[^\[\]]+)\[(?P<options>[^\]]*)\]$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def options_of(name: str, function: Callable[..., Any], base: type[M]) -> type[M]:
    """Return a schema of a function's keyword-only parameters, with their types, limits and defaults."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(name, __base__=base, **fields)


def source_of(function: Callable[..., Any]) -> tuple[str, str]:
    """Return file and name, which are equal if a script is also found by its entry point."""
    return inspect.getfile(function), function.__qualname__


@dataclass(frozen=True)
class Entry:
    """A registered function.

    Attributes:
        name: exact.
        function: with its options, once :meth:`Named.entry` has read them.
        facts: what its registration said of it.
        options: their values.
    """

    name: str
    function: Callable[..., Any]
    facts: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


class Named:
    """A registry of functions of one kind.

    Args:
        what: the kind, for errors: ``server rule``.
        group: entry-point group of third parties.
        own: the module that registers modalign's own.
    """

    def __init__(self, what: str, group: str, own: str) -> None:
        self.what, self.group, self.own = what, group, own
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def __call__(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Decorator: register a function; its keyword-only parameters are its options.

        Raises:
            UsageError: the name is taken.
        """

        def register(function: F) -> F:
            known = self._entries.get(name)
            if known is not None and source_of(known.function) != source_of(function):
                raise UsageError(f"{self.what} {name!r} is registered twice")
            self._entries[name] = Entry(name, function, facts)
            return function

        return register

    def names(self) -> list[str]:
        """Return every known name, modalign's own first."""
        if not self._loaded:
            importlib.import_module(self.own)
            for entry in entry_points(group=self.group):
                entry.load()
                if entry.name not in self._entries:
                    raise UsageError(
                        f"entry point {entry.name!r} ({entry.value}) registers no {self.what} of that name"
                    )
            self._loaded = True
        return list(self._entries)

    def entry(self, text: str) -> Entry:
        """Return the entry of ``name`` or ``name[option=value;...]``, its function with these options.

        Raises:
            UsageError: an unknown name or option, or a wrong value.
        """
        found = _WITH_OPTIONS.match(text.strip())
        name = found["name"] if found else text.strip()
        if name not in self.names():
            raise UsageError(f"no {self.what} is called {name!r}; {choose(name, self.names())}")
        known = self._entries[name]
        schema = options_of(name, known.function, _Strict)
        given: dict[str, Any] = {}
        for item in filter(None, (found["options"] if found else "").split(";")):
            key, equals, value = item.partition("=")
            if not equals:
                raise UsageError(f"{self.what} {text!r}: {item!r} is not option=value")
            given[key.strip()] = read_yaml(value)
        try:
            options = schema.model_validate(given).model_dump()
        except ValidationError as error:
            there = ", ".join(schema.model_fields) or "none"
            raise UsageError(
                f"{self.what} {text!r}: {explained(error)}; its options are {there}"
            ) from error
        return Entry(name, partial(known.function, **options), known.facts, options)
