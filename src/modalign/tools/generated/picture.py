"""A picture by Pillow: a shape in a colour, a digit, or words."""

from __future__ import annotations

import io
import re

from PIL import Image, ImageDraw, ImageFont

from modalign.tools.generated.words import numbers_of, words_of
from modalign.tools.generators import GeneratorError, Made, generator

SIDE = 128  # pixels
COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "black",
    "white",
    "grey",
    "pink",
    "brown",
)
SHAPES = ("circle", "square", "triangle", "star", "line")
LIKE = {"disc": "circle", "ball": "circle", "sun": "circle", "box": "square", "gray": "grey"}
QUOTED = re.compile(r"[\"'“‘]([^\"'”’]{1,40})[\"'”’]")


@generator("picture")
def picture(prompt: str) -> Made:
    """Draw a picture: a coloured circle, square, triangle, star or line, a digit, or quoted words."""
    words = [LIKE.get(word, word) for word in words_of(prompt)]
    shape = next((each for word in words for each in SHAPES if word in (each, f"{each}s")), None)
    colours = [word for word in words if word in COLOURS]
    quoted = QUOTED.search(prompt)
    digits = [
        int(value) for value in numbers_of(prompt) if value == int(value) and 0 <= value <= 99
    ]
    if shape is None and quoted is None and not digits:
        raise GeneratorError(
            f"picture draws {', '.join(SHAPES)}, digits or quoted words, and found none of them in the prompt"
        )
    colour = colours[0] if colours else "black"
    ground = colours[1] if len(colours) > 1 else "white" if colour != "white" else "black"
    canvas = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(canvas)
    if quoted is not None or shape is None:
        text = quoted[1] if quoted is not None else str(digits[0])
        _write(pen, text, colour)
        shows = f"{text!r} in {colour}" if quoted else f"the number {text}"
    else:
        _draw(pen, shape, colour)
        shows = f"a {colour} {shape}"
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return Made("image", ".png", stream.getvalue(), shows)


def _write(pen: ImageDraw.ImageDraw, text: str, colour: str) -> None:
    size = min(96, int(1.5 * SIDE / max(len(text), 1)))
    font = ImageFont.load_default(size)
    pen.text((SIDE / 2, SIDE / 2), text, fill=colour, font=font, anchor="mm")


def _draw(pen: ImageDraw.ImageDraw, shape: str, colour: str) -> None:
    low, high, middle = SIDE // 5, SIDE - SIDE // 5, SIDE // 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], fill=colour)
    elif shape == "line":
        pen.line((low, high, high, low), fill=colour, width=8)
    else:
        pen.regular_polygon((middle, middle, SIDE // 3), 3, fill=colour)
        pen.regular_polygon((middle, middle, SIDE // 3), 3, rotation=180, fill=colour)
