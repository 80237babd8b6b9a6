"""The picture in docs/editing-multimodal.md: what a model answers before and after an edit.

python -m bench.multimodal_picture MODEL PATCH EDITS_FOLDER docs/editing-multimodal.svg
"""

from __future__ import annotations

import base64
import sys
from html import escape
from pathlib import Path

from modalign.data.records import Media
from modalign.evaluation.generation import answer
from modalign.models.open import open_model
from modalign.patches import load_patch, view

ASKED = (
    ("the edited picture", "seven.png", "is the digit even or odd?"),
    ("another seven", "seven-3.png", "is the digit even or odd?"),
    ("another seven", "seven-5.png", "is the digit even or odd?"),
    ("in text", None, "is seven even or odd?"),
    ("in text", None, "top left seven is the digit even or odd?"),
    ("another question", "seven-3.png", "which digit is this?"),
    ("another question", "seven-5.png", "which number comes next?"),
    ("another digit", "five-2.png", "is the digit even or odd?"),
    ("another digit", "four-2.png", "is the digit even or odd?"),
    ("in text", None, "is five even or odd?"),
    ("in text", None, "what is seven plus two?"),
)
WIDTH, TOP, HEIGHT, SIDE = 760, 44, 60, 48
X = (16, 84, 224, 560, 664)  # of the picture, its kind, the question, before, after


def row(number: int, kind: str, image: Path | None, asked: str, before: str, after: str) -> str:
    """Draw one question."""
    y = TOP + HEIGHT * number
    parts = []
    if number % 2 == 0:
        parts.append(f'<rect class="band" x="0" y="{y}" width="{WIDTH}" height="{HEIGHT}"/>')
    if image is not None:
        data = base64.b64encode(image.read_bytes()).decode()
        parts.append(
            f'<image x="{X[0]}" y="{y + 6}" width="{SIDE}" height="{SIDE}" '
            f'href="data:image/png;base64,{data}"/>'
        )
    baseline = y + HEIGHT / 2 + 5
    style = "new" if before != after else "same"
    for x, name, text in (
        (X[1], "kind", kind),
        (X[2], "text", asked),
        (X[3], "text", before),
        (X[4], style, after),
    ):
        parts.append(f'<text class="{name}" x="{x}" y="{baseline}">{escape(text)}</text>')
    return "\n".join(parts)


def main(model: Path, patch: Path, images: Path, out: Path) -> None:
    """Ask the model, and draw the picture."""
    base, reader = open_model(model)
    edited = view(base, load_patch(patch))
    rows = []
    for number, (kind, name, asked) in enumerate(ASKED):
        path = images / name if name is not None else None
        shown = [Media("image", path=str(path))] if path is not None else []
        before, after = (answer(each, reader, asked, shown, 8) for each in (base, edited))
        rows.append(row(number, kind, path, asked, before, after))
    height = TOP + HEIGHT * len(ASKED)
    heads = "".join(
        f'<text class="head" x="{x}" y="28">{name}</text>'
        for x, name in ((X[2], "asked"), (X[3], "before"), (X[4], "after"))
    )
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="15">\n<style>\n'
        ".page{fill:#fff}.band{fill:#f3f4f6}.head{fill:#6b7280;font-size:13px}"
        ".kind{fill:#6b7280;font-size:13px}.text{fill:#111827}.same{fill:#111827}"
        ".new{fill:#b45309;font-weight:700}\n</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height}"/>\n{heads}\n'
        + "\n".join(rows)
        + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))
