"""The typed registry of connectors: names are exact, duplicates are errors, third parties use entry points."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from modalign.connectors import ENTRY_POINT_GROUP
from modalign.connectors.base import Connector
from modalign.errors import UsageError, choose, meant

_REGISTRY: dict[str, type[Connector]] = {}


def register(cls: type[Connector]) -> None:
    """Register a connector under its ``name``.

    Raises:
        UsageError: the name is taken by another class.
    """
    known = _REGISTRY.get(cls.name)
    if known is not None and known is not cls:
        raise UsageError(
            f"connector name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}; "
            f"rename {cls.__module__}.{cls.__qualname__}"
        )
    _REGISTRY[cls.name] = cls


@cache
def _load_all() -> None:
    from modalign.connectors import converters, perceivers

    for package in (converters, perceivers):
        for module in pkgutil.iter_modules(package.__path__):
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
            for value in list(vars(loaded).values()):
                is_own = isinstance(value, type) and value.__module__ == loaded.__name__
                if is_own and issubclass(value, Connector) and "name" in vars(value):
                    register(value)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        loaded_class = entry.load()
        if not (isinstance(loaded_class, type) and issubclass(loaded_class, Connector)):
            raise UsageError(f"entry point {entry.name!r} ({entry.value}) is not a Connector class")
        register(loaded_class)


def connectors() -> dict[str, type[Connector]]:
    """Return every known connector by name, sorted by family and name."""
    _load_all()
    return dict(sorted(_REGISTRY.items(), key=lambda kv: (kv[1].family, kv[0])))


def connector_class(name: str) -> type[Connector]:
    """Return the connector called exactly ``name``.

    Raises:
        UsageError: there is none; the message gives the nearest names.
    """
    known = connectors()
    if name not in known:
        hint = meant(name, known) or choose(name, sorted(known))
        raise UsageError(f"no connector is called {name!r}; {hint}")
    return known[name]
