"""The editing methods, by their names on the command line."""

from __future__ import annotations

from modalign.editing.methods.alphaedit import AlphaEdit, AlphaEditConfig
from modalign.editing.methods.base import Method
from modalign.editing.methods.finetune import FT, FTL, FTConfig, FTLConfig
from modalign.editing.methods.memit import MEMIT, MEMITConfig
from modalign.editing.methods.pmet import PMET, PMETConfig
from modalign.editing.methods.rome import ROME, ROMEConfig
from modalign.errors import UsageError, choose

DEFAULT_METHOD = "memit"  # best on models that no settings were tuned for (docs/editing-untuned.md)
METHODS: dict[str, type[Method]] = {
    method.name: method for method in (PMET, MEMIT, ROME, FT, FTL, AlphaEdit)
}


def method_named(name: str) -> type[Method]:
    """Return the method with this name.

    Raises:
        UsageError: there is none; the message gives the nearest names.
    """
    if name in METHODS:
        return METHODS[name]
    raise UsageError(f"there is no editing method {name!r}: {choose(name, METHODS)}")


__all__ = [
    "DEFAULT_METHOD",
    "FT",
    "FTL",
    "MEMIT",
    "METHODS",
    "PMET",
    "ROME",
    "AlphaEdit",
    "AlphaEditConfig",
    "FTConfig",
    "FTLConfig",
    "MEMITConfig",
    "Method",
    "PMETConfig",
    "ROMEConfig",
    "method_named",
]
