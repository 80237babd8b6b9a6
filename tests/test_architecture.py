"""Imports run downwards only: a room may import rooms below it, never one above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import modalign

# From the top of the house to its ground, as in docs/architecture.md.
ROOMS = (
    "cli",
    "comparison",
    "serving",
    "editing",
    "training",
    "evaluation",
    "patches",
    "models",
    "connectors",
    "encoders",
    "tools",
    "starter",
    "pages",
    "data",
    "endpoints",
    "numbers",
)
GROUND = {
    "cache",
    "configuration",
    "devices",
    "differences",
    "errors",
    "files",
    "memory",
    "progress",
    "runs",
}
HOUSE = Path(modalign.__file__).parent


def imported(source: Path) -> Iterator[str]:
    """Names of modalign's modules that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_run_downwards() -> None:
    wrong = []
    for source in HOUSE.rglob("*.py"):
        room = source.relative_to(HOUSE).parts[0]
        if room not in ROOMS:  # the package's own doors: __init__, __main__, the ground
            continue
        for name in imported(source):
            parts = name.split(".")
            if parts[0] != "modalign" or len(parts) < 2 or parts[1] in GROUND:
                continue
            if parts[1] not in ROOMS or ROOMS.index(parts[1]) < ROOMS.index(room):
                wrong.append(f"{source.relative_to(HOUSE)} imports {name}")
    assert not wrong


def test_every_room_is_named() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS)
