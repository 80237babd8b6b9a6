"""Read a drawn digit: by the starter's reader of scanned digits, or by a model that takes pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from modalign.data.images import open_image
from modalign.data.records import Media, Message, Record, Source
from modalign.evaluation.choosing import choose_all
from modalign.starter.scenes import CELL, SIDE, WORDS, to_png
from modalign.tools.digits import DigitReader
from modalign.tools.guard import call_safely

QUESTION = "Which digit is this?"
DIGITS = tuple(WORDS[:10])


def _as_scene(medium: Media) -> Media:
    """Place a picture of another size in a cell of a scene, which is what the reader knows."""
    picture = open_image(medium)
    if picture.size == (SIDE, SIDE):
        return medium
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.BILINEAR))
    return Media("image", data=to_png(canvas))


def readers(opened: tuple[Any, Any] | None = None) -> dict[str, Callable[[Media], str]]:
    """Return ways of reading a digit: row -> a function that names it, or "" if nothing is read."""
    tool = DigitReader(name="digits", description="Reads digits.")

    def by_tool(medium: Media) -> str:
        lines = call_safely(tool, _as_scene(medium)).lines
        return max(lines, key=lambda line: line.score).text if lines else ""

    def by_model(medium: Media) -> str:
        source = Source("a drawn digit", 1)
        record = Record("digit", (Message("user", (medium, QUESTION)),), source, options=DIGITS)
        return choose_all(*opened, [record])[0].answer if opened else ""

    found: dict[str, Callable[[Media], str]] = {"the starter's reader of scans": by_tool}
    if opened:
        found["a model"] = by_model
    return found
