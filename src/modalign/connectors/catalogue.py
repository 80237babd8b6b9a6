"""What every connector says about itself, read from its source: a list of connectors needs no torch.

The class attributes of a connector are literals. They are read with their inheritance from the syntax trees of the
files, so that they stand in one place. Connectors of third parties are imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modalign.connectors import ENTRY_POINT_GROUP

HERE = Path(__file__).parent
ROOT = "Connector"  # the class at whose methods inheritance ends
STAGE_ONE = "stage_one_terms"


@dataclass(frozen=True)
class CatalogueEntry:
    """A connector, under the names that its class has.

    Attributes:
        stage_one: whether it has a stage one of its own.
        about: its file's docstring.
    """

    name: str
    family: str
    group: str
    enters: str
    token_formula: str
    parameter_text: str
    papers: tuple[str, ...]
    export_target: str
    discrete: bool
    stage_one: bool
    about: str


def catalogue() -> list[CatalogueEntry]:
    """Every connector, sorted by family and name."""
    own = list(_own())
    others = [_of_class(entry.load()) for entry in entry_points(group=ENTRY_POINT_GROUP)]
    return sorted([*own, *others], key=lambda entry: (entry.family, entry.name))


def _own() -> Iterator[CatalogueEntry]:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in HERE.rglob("*.py")}
    classes = {
        node.name: node
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    for file, tree in trees.items():
        if file.parent == HERE:  # what connectors share
            continue
        about = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "name" in _attributes(node):
                yield _entry(list(_line(node, classes)), about)


def _line(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """A class and the connectors it inherits from, the nearest first."""
    yield node
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _line(classes[base.id], classes)


def _entry(line: list[ast.ClassDef], about: str) -> CatalogueEntry:
    known: dict[str, Any] = {}
    for node in reversed(line):
        known |= _attributes(node)
    defined = {
        item.name
        for node in line
        if node.name != ROOT
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }
    wanted = {field.name for field in fields(CatalogueEntry)} & known.keys()
    return CatalogueEntry(
        **{name: known[name] for name in wanted}, stage_one=STAGE_ONE in defined, about=about
    )


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    """The class attributes that are literals."""
    found = {}
    for item in node.body:
        targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
        value = getattr(item, "value", None)
        if value is None or len(targets) != 1 or not isinstance(targets[0], ast.Name):
            continue
        try:
            found[targets[0].id] = ast.literal_eval(value)
        except ValueError:  # an expression: nothing that is listed
            continue
    return found


def _of_class(cls: Any) -> CatalogueEntry:
    names = [field.name for field in fields(CatalogueEntry)][:-2]
    about = (sys.modules[cls.__module__].__doc__ or "").strip()
    return CatalogueEntry(
        **{name: getattr(cls, name) for name in names},
        stage_one=bool(cls.stage_one_terms()),
        about=about,
    )
