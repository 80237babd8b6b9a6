"""A scene's structure, as a record states it, in lines: what a perfect detector would have said.

Made for NLVR (Suhr et al. 2017): a picture of three boxes, each a list of ``{"color", "type", "x_loc",
"y_loc", "size"}``. Any mapping or list of such lists with these or the usual detection fields can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modalign.data.records import Media
from modalign.tools.base import LINES, HashFile, Json, Signature, Tool, ToolError

# What NLVR calls its blue; names of all other colours are lowered only.
COLOURS = {"#0099ff": "blue"}
SIZES = {10: "small", 20: "medium", 30: "big"}


class StructureTool(Tool):
    """The annotations' groups of objects, one line each: ``box 1: blue triangle medium 80 80, ...``.

    An object is named by colour, shape and size, and placed by the x and y of its top left corner, in the
    annotation's own units.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, signature=Signature(result=LINES), reads_annotations=True)

    @property
    def parameters(self) -> int:
        """It has none."""
        return 0

    def run(self, medium: Media, **arguments: Any) -> list[str]:
        """Write the structure of a medium's annotations."""
        return structure_lines(medium.annotations)

    def identity(self, hash_file: HashFile) -> Json:
        """Its version."""
        return ["structure", 1]


def structure_lines(annotations: Any) -> list[str]:
    """One line per group of objects.

    Raises:
        ToolError: there are no annotations, or no lists of objects in them.
    """
    if isinstance(annotations, Mapping):
        annotations = next((annotations[k] for k in _GROUPS if k in annotations), None)
    if not isinstance(annotations, Sequence) or isinstance(annotations, str):
        raise ToolError(
            "the medium has no structure in its annotations: name the field that holds it"
        )
    groups = annotations if all(isinstance(g, list) for g in annotations) else [annotations]
    return [f"box {number}: {_group(group)}" for number, group in enumerate(groups, 1)]


_GROUPS = ("boxes", "structured_rep", "objects", "scene")


def _group(group: Any) -> str:
    return ", ".join(_thing(thing) for thing in group) or "empty"


def _thing(thing: Any) -> str:
    if not isinstance(thing, Mapping):
        raise ToolError(f"an object is a {type(thing).__name__}, not a mapping of its properties")
    colour = str(thing.get("color", "")).lower()
    words = [COLOURS.get(colour, colour), str(thing.get("type", thing.get("label", "")))]
    size = thing.get("size")
    words.append(SIZES.get(size, str(size)) if size is not None else "")
    words += [str(thing[key]) for key in ("x_loc", "y_loc") if key in thing]
    return " ".join(word for word in words if word)
