"""Handwriting scenes: scikit-learn's scanned digits on a 2 x 2 grid, with questions of known answers.

Source images (1,797 scans of 8 x 8 pixels, Alpaydin & Kaynak 1998) are split by scan before any
scene is composed, so no evaluation scan was used to train a model or the encoder.

Skills: naming, position, counting, comparing, parity, arithmetic, presence ("is there a seven",
for hallucination), and ``next``, which is not in the training data: its answers must come from the
language model ("transfer").
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image

# fmt: off
WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]
# fmt: on
CELLS = ("top left", "top right", "bottom left", "bottom right")
SIDE = 48  # pixels of a scene's side
CELL = SIDE // 2
DIGIT = 20  # pixels of a pasted digit's side
TRANSFER_SKILL = "next"
Split = Literal["train", "val", "eval"]


@dataclass(frozen=True)
class Scene:
    """One to four digits; ``cells[i]`` is the digit in CELLS[i] or None, ``scans`` their source rows."""

    cells: tuple[int | None, int | None, int | None, int | None]
    scans: tuple[int, ...]

    @property
    def digits(self) -> list[int]:
        """Return the digits in reading order."""
        return [digit for digit in self.cells if digit is not None]

    def describe(self) -> str:
        """Return the scene in words, as the language model knows scenes from text."""
        placed = zip(CELLS, self.cells, strict=True)
        return ", ".join(f"{cell} {WORDS[digit]}" for cell, digit in placed if digit is not None)


@dataclass(frozen=True)
class Question:
    """A question about a scene with its exact answer."""

    skill: str
    text: str
    answer: str


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the scanned digits (1797, 8, 8) in 0..255 and their labels (1797,)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target.astype(np.int64)


@cache
def split_scans(split: Split) -> np.ndarray:
    """Return the scan indices of one split: 60 % train, 12 % val, 28 % eval, never changed."""
    order = np.random.default_rng(20231107).permutation(len(scans()[1]))
    first, second = int(0.60 * len(order)), int(0.72 * len(order))
    return {"train": order[:first], "val": order[first:second], "eval": order[second:]}[split]


def draw_scene(rng: Generator, split: Split, count: int | None = None) -> Scene:
    """Draw one to four scans of a split into distinct cells."""
    count = int(rng.integers(1, 5)) if count is None else count
    rows = rng.choice(split_scans(split), size=count, replace=False)
    cells: list[int | None] = [None, None, None, None]
    places = sorted(rng.choice(4, size=count, replace=False))
    for place, row in zip(places, rows, strict=True):
        cells[place] = int(scans()[1][row])
    a, b, c, d = cells
    return Scene((a, b, c, d), tuple(int(row) for row in rows))


def render(scene: Scene, rng: Generator) -> Image.Image:
    """Paste the scene's scans with a jitter of up to two pixels: a (48, 48) RGB image."""
    canvas = Image.new("L", (SIDE, SIDE), 0)
    rows = iter(scene.scans)
    for place, digit in enumerate(scene.cells):
        if digit is None:
            continue
        scan = Image.fromarray(scans()[0][next(rows)])
        scan = scan.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)
        left, top = (place % 2) * CELL, (place // 2) * CELL
        dx, dy = (int(value) for value in rng.integers(0, CELL - DIGIT + 1, size=2))
        canvas.paste(scan, (left + dx, top + dy))
    return canvas.convert("RGB")


def to_png(image: Image.Image) -> bytes:
    """Encode without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------- questions


def _naming(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    if len(scene.digits) == 1:
        yield "which digit is this?", WORDS[scene.digits[0]]


def _position(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    cells = scene.cells
    if len(scene.digits) > 2:
        for cell, digit in zip(CELLS, cells, strict=True):
            if digit is not None:
                yield f"which digit is on the {cell}?", WORDS[digit]
    if len(scene.digits) != 2:
        return
    sides = {"left": (0, 2), "right": (1, 3), "top": (0, 1), "bottom": (2, 3)}
    for side, places in sides.items():
        there = [cells[place] for place in places if cells[place] is not None]
        if len(there) == 1 and there[0] is not None:
            yield f"which digit is on the {side}?", WORDS[there[0]]


def _counting(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    yield "how many digits are there?", WORDS[len(scene.digits)]


def _comparing(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    if len(scene.digits) == 2 and scene.digits[0] != scene.digits[1]:
        yield "which digit is larger?", WORDS[max(scene.digits)]
        yield "which digit is smaller?", WORDS[min(scene.digits)]


def _parity(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    if len(scene.digits) == 1:
        yield "is the digit even or odd?", "odd" if scene.digits[0] % 2 else "even"


def _arithmetic(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    if len(scene.digits) == 2:
        yield "what is the sum of the digits?", WORDS[sum(scene.digits)]


def _presence(scene: Scene, rng: Generator) -> Iterator[tuple[str, str]]:
    if rng.random() < 0.5:
        yield f"is there a {WORDS[int(rng.choice(scene.digits))]}?", "yes"
    else:
        absent = sorted(set(range(10)) - set(scene.digits))
        yield f"is there a {WORDS[int(rng.choice(absent))]}?", "no"


def _next(scene: Scene, _: Generator) -> Iterator[tuple[str, str]]:
    if len(scene.digits) == 1:
        yield "which number comes next?", WORDS[scene.digits[0] + 1]


# Skill -> its questions, and how many digits its scenes have.
_SKILLS: dict[
    str, tuple[Callable[[Scene, Generator], Iterator[tuple[str, str]]], tuple[int, ...]]
] = {
    "naming": (_naming, (1,)),
    "position": (_position, (2, 3, 4)),
    "counting": (_counting, (1, 2, 3, 4)),
    "comparing": (_comparing, (2,)),
    "parity": (_parity, (1,)),
    "arithmetic": (_arithmetic, (2,)),
    "presence": (_presence, (1, 2, 3, 4)),
    TRANSFER_SKILL: (_next, (1,)),
}
TRAINED_SKILLS = tuple(skill for skill in _SKILLS if skill != TRANSFER_SKILL)


def draw_for_skill(rng: Generator, split: Split, skill: str) -> tuple[Scene, Question]:
    """Draw a scene about which the skill can be asked, and one question of that skill."""
    while True:
        scene = draw_scene(rng, split, int(rng.choice(_SKILLS[skill][1])))
        if asked := ask(scene, skill, rng):
            return scene, asked


def ask_several(
    scene: Scene, skills: Sequence[str], count: int, rng: Generator, first: Question | None = None
) -> list[Question]:
    """Ask up to ``count`` different questions about one scene, with skills in random order."""
    asked = [first] if first is not None else []
    for skill in rng.permutation(list(skills) * 2):
        if len(asked) >= count:
            break
        question = ask(scene, str(skill), rng)
        if question is not None and question.text not in {known.text for known in asked}:
            asked.append(question)
    return asked


def ask(scene: Scene, skill: str, rng: Generator) -> Question | None:
    """Return one question of the skill about this scene, or None if it makes no sense."""
    choices = list(_SKILLS[skill][0](scene, rng))
    if not choices:
        return None
    text, answer = choices[int(rng.integers(len(choices)))]
    return Question(skill, text, answer)
