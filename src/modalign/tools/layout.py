"""Places, relations and counts from the boxes that another tool finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool
from modalign.tools.results import Line, bounded, lines

ROWS = {2: ("top", "bottom"), 3: ("top", "", "bottom")}
COLUMNS = {2: ("left", "right"), 3: ("left", "", "right")}
MOST_RELATED = 6  # number of objects with relations: the most certain
SAY = ("places", "relations", "counts")


class LayoutTool(Tool):
    """Describes the positions of what another tool finds in a picture.

    Args:
        of: a tool whose results have boxes ``[x0, y0, x1, y1]`` in pixels.
        grid: cells per side for naming places: 2 or 3.
        say: which of places, relations and counts.
        **settings: of :class:`~modalign.tools.base.Tool`.
    """

    def __init__(self, of: Tool, grid: int = 3, say: Sequence[str] = SAY, **settings: Any) -> None:
        super().__init__(
            **settings,
            signature=Signature(of.signature.properties, of.signature.required, LINES),
            reads_annotations=of.reads_annotations,
        )
        self._of = of
        self._grid = grid
        self._say = tuple(say)

    @property
    def parameters(self) -> int | None:
        """Return the parameters of the other tool."""
        return self._of.parameters

    def load(self) -> None:
        """Prepare the other tool."""
        self._of.load()

    def run(self, medium: Media, **arguments: Any) -> list[dict[str, Any]]:
        """Call the other tool and describe the positions of its findings."""
        found = lines(bounded(self._of(medium, **arguments), self._of.max_characters).value)
        things = [PlacedThing.of(line) for line in found if line.box is not None]
        width, height = open_image(medium).size
        things.sort(key=lambda thing: thing.cell(self._grid, width, height))
        say: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "places": lambda: places(things, self._grid, width, height),
            "relations": lambda: relations(things),
            "counts": lambda: counts(things),
        }
        return [line for name in self._say for line in say[name]()]

    def identity(self, hash_file: HashFile) -> Json:
        """Its settings and the other tool's identity."""
        return ["layout", 1, self._grid, list(self._say), self._of.identity(hash_file)]

    def close(self) -> None:
        """Release the other tool."""
        self._of.close()


@dataclass(frozen=True)
class PlacedThing:
    """Something with a name and a centre."""

    name: str
    score: float
    x: float
    y: float

    @classmethod
    def of(cls, line: Line) -> PlacedThing:
        """Return the object of a line with a box."""
        assert line.box is not None
        left, top, right, bottom = line.box
        return cls(line.text, line.score, (left + right) / 2, (top + bottom) / 2)

    def cell(self, grid: int, width: int, height: int) -> tuple[int, int]:
        """Row and column of its centre in a grid over the picture."""
        row, column = int(self.y * grid / height), int(self.x * grid / width)
        return min(max(row, 0), grid - 1), min(max(column, 0), grid - 1)


def places(
    things: Sequence[PlacedThing], grid: int, width: int, height: int
) -> list[dict[str, Any]]:
    """``top left seven``: one line per thing."""
    found = []
    for thing in things:
        row, column = thing.cell(grid, width, height)
        place = f"{ROWS[grid][row]} {COLUMNS[grid][column]}".strip() or "centre"
        found.append({"text": f"{place} {thing.name}", "score": thing.score})
    return found


def relations(things: Sequence[PlacedThing]) -> list[dict[str, Any]]:
    """``seven left of three``: each pair of the most certain objects, along the axis that separates them more."""
    surest = sorted(sorted(things, key=lambda thing: -thing.score)[:MOST_RELATED], key=things.index)
    found = []
    for one, other in combinations(surest, 2):
        right, down = other.x - one.x, other.y - one.y
        beside = abs(right) >= abs(down)
        word, offset = ("left of", right) if beside else ("above", down)
        first, second = (one, other) if offset >= 0 else (other, one)
        score = one.score * other.score
        found.append({"text": f"{first.name} {word} {second.name}", "score": score})
    return found


def counts(things: Sequence[PlacedThing]) -> list[dict[str, Any]]:
    """``3 things: seven 2, three 1``."""
    of_name = Counter(thing.name for thing in things)
    each = ", ".join(f"{name} {count}" for name, count in of_name.most_common())
    noun = "thing" if len(things) == 1 else "things"
    return [{"text": f"{len(things)} {noun}: {each}" if things else "nothing", "score": 1.0}]
