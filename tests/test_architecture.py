"""Who may import whom: rooms by an explicit list, and no circle of files.

Every import counts: at the top of a file, inside a function, or under ``TYPE_CHECKING``. A file that names
another's class, even only for the type checker, cannot be read without it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import modalign

# Files below all rooms. They import one another only.
GROUND = {
    "cache",
    "cache_entries",
    "chat_templates",
    "clusters",
    "configuration",
    "devices",
    "differences",
    "errors",
    "files",
    "hashing",
    "lengths",
    "memory",
    "named",
    "progress",
    "runs",
    "strict_json",
    "trust",
    "version",
    "visible",
}

# What each room may import beside the ground; from the top of the house down, as in docs/architecture.md.
# Rooms of one height (comparison, serving and editing; endpoints and numbers; ...) never import each other.
_READING = ("connectors", "data", "encoders", "endpoints", "models", "starter", "tools")
_JUDGING = (*_READING, "evaluation", "numbers", "pages", "patches")
ROOMS: dict[str, tuple[str, ...]] = {
    "cli": (
        *_JUDGING,
        "applications",
        "comparison",
        "compression",
        "editing",
        "federation",
        "index",
        "merging",
        "mixtures",
        "serving",
        "training",
        "unlearning",
    ),
    "unlearning": (*_JUDGING, "editing", "training"),
    "mixtures": (*_JUDGING, "comparison", "merging", "training"),
    "applications": (*_JUDGING, "index", "training"),
    "comparison": (*_JUDGING, "training"),
    "serving": (*_READING, "evaluation", "patches"),
    "editing": (*_JUDGING, "training"),
    "compression": (*_JUDGING, "training"),
    "federation": (*_JUDGING, "training"),
    "merging": (*_JUDGING, "training"),
    "training": (*_READING, "evaluation", "numbers", "patches"),
    "evaluation": (*_READING, "numbers", "pages", "patches"),
    "index": ("data", "models", "patches"),
    "patches": ("data", "models"),
    "models": ("connectors", "data", "encoders", "endpoints", "starter", "tools"),
    "connectors": (),
    "encoders": ("data",),  # its registry alone, which no export carries
    "tools": ("data", "endpoints", "starter"),
    "starter": (),
    "pages": ("numbers",),
    "data": ("endpoints",),
    "endpoints": (),
    "numbers": (),
}
# The package's own doors.
DOORS = {"__init__": ("comparison",), "__main__": ("cli",)}

HOUSE = Path(modalign.__file__).parent
Graph = dict[str, set[str]]


def imports(folder: Path) -> Graph:
    """Which file of a package imports which, by dotted names; a package stands for its ``__init__``."""
    files = {".".join(_parts(folder, file)): file for file in folder.rglob("*.py")}
    return {
        name: {found for found in _imported(file, set(files)) if found != name}
        for name, file in files.items()
    }


def _parts(folder: Path, file: Path) -> tuple[str, ...]:
    parts = file.relative_to(folder.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _imported(file: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from {inner if inner in known else node.module} & known
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known


def circle(graph: Graph) -> list[str]:
    """The files of a circle, the first one again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.fixture(scope="module")
def graph() -> Graph:
    return imports(HOUSE)


def test_rooms_import_what_they_may(graph: Graph) -> None:
    wrong = []
    for name, found in graph.items():
        room = name.split(".")[1] if "." in name else "__init__"
        may = {room, *GROUND, *DOORS.get(room, ()), *ROOMS.get(room, ())}
        tops = {other.split(".")[1] if "." in other else "__init__" for other in found}
        wrong += [f"{name} imports {top}" for top in tops - may]
    assert not wrong


def test_no_circle_of_files(graph: Graph) -> None:
    assert not circle(graph)


def test_every_room_and_ground_file_is_named() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS)
    assert {path.stem for path in HOUSE.glob("*.py")} == GROUND | set(DOORS)


def test_the_list_of_rooms_has_no_circle() -> None:
    assert not circle({room: set(may) for room, may in ROOMS.items()})
    assert all(set(may) <= set(ROOMS) for may in ROOMS.values())


@pytest.mark.parametrize(
    "last",
    [
        "from house.a import x",
        "def f():\n    import house.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import x",
        "from house import a",
    ],
    ids=["at the top", "in a function", "for types", "as a name of the package"],
)
def test_circles_are_found(tmp_path: Path, last: str) -> None:
    folder = tmp_path / "house" / "room"
    folder.mkdir(parents=True)
    (tmp_path / "house" / "__init__.py").touch()
    (tmp_path / "house" / "a.py").write_text("from house.room import x, c\n")
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "c.py").write_text("import os\n")
    assert not circle(imports(tmp_path / "house"))
    (folder / "c.py").write_text(last)
    found = circle(imports(tmp_path / "house"))
    assert set(found) == {"house.a", "house.room.c"}
    assert found[0] == found[-1]


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports them by name alone: a second file of one name ends the whole collection."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


# Files that may use Python's own JSON reader, which takes NaN, equal names and any depth, and why.
OWN_WORDS = "what this program wrote a moment ago, in memory or through a pipe of its own"
KEPT = "what this program keeps for itself, written whole and made anew where it is not"
EXPORTED = "is carried by exported models, alone"
LOOSE_JSON = {
    "strict_json": "the strict reader itself",
    "cli.evaluate_edits": OWN_WORDS,
    "connectors.base": OWN_WORDS,
    "data.curation.pipeline": OWN_WORDS,
    "data.curation.store": KEPT,
    "data.features": KEPT,
    "data.pieces": OWN_WORDS,
    "data.stored": KEPT,
    "editing.compare.request": OWN_WORDS,
    "encoders.speech": EXPORTED,
    "endpoints.cache": KEPT,
    "evaluation.kept": KEPT,
    "hashing": OWN_WORDS,
    "index.vectors": KEPT,
    "merging.checking": OWN_WORDS,
    "merging.clean": OWN_WORDS,
    "models.encoders.speech": EXPORTED,
    "models.export.ladder": OWN_WORDS,
    "models.probe": "runs without this package, on a file written for it",
    "runs": KEPT,
    "serving.decoder": OWN_WORDS,
    "tools.cache": KEPT,
    "tools.sandbox.inside.main": "runs without this package, on its parent's lines",
    "tools.worker": OWN_WORDS,
}


def _reads_loosely(file: Path) -> bool:
    return any(
        (
            isinstance(node, ast.Attribute)
            and node.attr in {"load", "loads", "JSONDecoder"}
            and isinstance(node.value, ast.Name)
            and node.value.id == "json"
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "json")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )


def test_json_of_others_is_read_strictly() -> None:
    loose = {
        ".".join(_parts(HOUSE, file)[1:]) for file in HOUSE.rglob("*.py") if _reads_loosely(file)
    }
    assert loose == LOOSE_JSON.keys(), "read it by strict_json, or say here why not"
