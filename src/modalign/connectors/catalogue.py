"""Read what every connector declares about itself from its source, so that listing them needs no torch.

The class attributes of a connector are literals. They are read, with inheritance, from the files' syntax
trees, so that they are written down only once. Third parties' connectors are imported.
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
    """A connector; its fields have the names of the class's attributes.

    Attributes:
        stage_one: whether it has its own stage one.
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
    """List every connector, sorted by family and name."""
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
        if file.parent == HERE:  # code that connectors share
            continue
        about = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "name" in _attributes(node):
                yield _entry(list(_line(node, classes)), about)


def _line(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """Yield a class and the connectors that it inherits from, the nearest first."""
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
    """Return the class attributes that are literals."""
    found = {}
    for item in node.body:
        targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
        value = getattr(item, "value", None)
        if value is None or len(targets) != 1 or not isinstance(targets[0], ast.Name):
            continue
        try:
            found[targets[0].id] = ast.literal_eval(value)
        except ValueError:  # an expression, which the list does not show
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
