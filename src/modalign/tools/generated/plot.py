"""A chart of the numbers in a prompt, by Pillow: bars, or a line."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from modalign.tools.generated.words import numbers_of, words_of
from modalign.tools.generators import GeneratorError, Made, generator

WIDTH, HEIGHT, EDGE = 320, 200, 24  # pixels
MOST = 30  # numbers
INK, FILL = "#333333", "#2f6fb3"


@generator("plot")
def plot(prompt: str) -> Made:
    """Plot two numbers or more as bars, or as a line if the prompt says line, curve or trend."""
    values = numbers_of(prompt)[:MOST]
    if len(values) < 2:
        raise GeneratorError("plot needs two numbers or more in the prompt")
    line = bool({"line", "curve", "trend"} & set(words_of(prompt)))
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(10)
    low, high = min(0.0, *values), max(0.0, *values)
    scale = (HEIGHT - 2 * EDGE) / ((high - low) or 1.0)
    step = (WIDTH - 2 * EDGE) / len(values)
    base = HEIGHT - EDGE + low * scale  # where zero is
    tops = [
        (EDGE + step * (place + 0.5), base - value * scale) for place, value in enumerate(values)
    ]
    if line:
        pen.line(tops, fill=FILL, width=3)
    for (x, y), value in zip(tops, values, strict=True):
        if not line:
            pen.rectangle((x - step * 0.35, min(y, base), x + step * 0.35, max(y, base)), fill=FILL)
        pen.text(
            (x, y - 7 if value >= 0 else y + 7), f"{value:g}", fill=INK, font=font, anchor="mm"
        )
    pen.line((EDGE, base, WIDTH - EDGE, base), fill=INK)
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    kind = "line" if line else "bars"
    return Made(
        "image", ".png", stream.getvalue(), f"{kind} of {', '.join(f'{v:g}' for v in values)}"
    )
