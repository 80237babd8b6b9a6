"""Named chains: built-in ones, those of a configuration, and files with one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from modalign.configuration import read_yaml, validated
from modalign.errors import UsageError, choose
from modalign.strict_json import loads
from modalign.tools.spec import ChainSpec

BUILT_IN: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("chains.yaml").read_text(encoding="utf-8")
)
FILE_TYPES = (".yaml", ".yml", ".toml", ".json")


def chain_specs(own: Mapping[str, Any] | None = None) -> dict[str, ChainSpec]:
    """Every chain by name: the built-in ones, and those of a configuration's ``tools`` section.

    Raises:
        UsageError: a chain that cannot be read, or has a built-in's name.
    """
    own = own or {}
    if taken := sorted(set(own) & set(BUILT_IN)):
        raise UsageError(f"the tool chain {taken[0]!r} is built in: give yours another name")
    return {name: parse_chain(value, name) for name, value in {**BUILT_IN, **own}.items()}


def chain_spec(name: str, own: Mapping[str, Any] | None = None) -> ChainSpec:
    """Return the chain called exactly ``name``, or in the file of that name (YAML, TOML or JSON).

    Raises:
        UsageError: there is none; the message names the nearest ones.
    """
    if name.endswith(FILE_TYPES):
        return parse_chain(_read(Path(name)), name)
    known = chain_specs(own)
    if name not in known:
        raise UsageError(f"no tool chain is called {name!r}; {choose(name, sorted(known))}")
    return known[name]


def parse_chain(value: Any, name: str) -> ChainSpec:
    """Return a chain from plain data.

    Raises:
        UsageError: which field is wrong, and why.
    """
    return validated(ChainSpec, value, f"tool chain {name}")


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            return tomllib.loads(text)
        return loads(text) if path.suffix == ".json" else read_yaml(text)
    except (OSError, ValueError, RecursionError) as error:  # TOML has no limit of depth
        raise UsageError(f"the tool chain {path} cannot be read: {error}") from None
