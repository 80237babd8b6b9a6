"""Files for the tasks of `modalign eval`, made from the starter's scenes of scanned digits.

No scan in them was seen by a model trained on the starter's training data.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from modalign.starter.scenes import CELLS, WORDS, Scene, draw_scene, render, to_png

OUT = Path(__file__).parent / "data"
SCENES = 150
DIGITS = WORDS[:10]


def names(scene: Scene) -> list[str]:
    """The digits of a scene in words, each once."""
    return sorted({DIGITS[digit] for digit in scene.digits})


def row(number: int, question: str, answer: str, **fields: Any) -> dict[str, Any]:
    """A flat row; see docs/data.md."""
    return {
        "id": f"scene-{number}",
        "image": f"images/{number:04d}.png",
        "question": question,
        "answer": answer,
        **fields,
    }


def presence(scenes: list[Scene], rng: np.random.Generator) -> list[dict[str, Any]]:
    """POPE's three splits: absent digits at random, frequent ones, ones often seen together with those here."""
    frequency = Counter(name for scene in scenes for name in names(scene))
    together: dict[str, Counter[str]] = {name: Counter() for name in DIGITS}
    for scene in scenes:
        for name in names(scene):
            together[name].update(other for other in names(scene) if other != name)
    rows = []
    for number, scene in enumerate(scenes):
        here = names(scene)
        absent = [name for name in DIGITS if name not in here]
        beside: Counter[str] = sum((together[name] for name in here), Counter())
        chosen = {
            "random": str(rng.choice(absent)),
            "popular": max(absent, key=lambda name: frequency[name]),
            "adversarial": max(absent, key=lambda name: beside[name]),
        }
        for split, other in chosen.items():
            for name, answer in ((str(rng.choice(here)), "yes"), (other, "no")):
                made = row(number, f"is there a {name}?", answer, skill=split)
                rows.append({**made, "id": f"{made['id']}-{split}-{answer}"})
    return rows


def main() -> None:
    """Write the images and a file per task."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, "eval") for _ in range(SCENES)]
    (OUT / "images").mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        (OUT / "images" / f"{number:04d}.png").write_bytes(to_png(render(scene, rng)))
    captions = [
        row(n, "describe the scene.", scene.describe(), objects=names(scene))
        for n, scene in enumerate(scenes)
    ]
    choice = []
    for n, scene in enumerate(scenes):
        if len(scene.digits) == 2:  # there the starter asks for sides, not for corners
            continue
        place = next(place for place, digit in enumerate(scene.cells) if digit is not None)
        where = "is this" if len(scene.digits) == 1 else f"is on the {CELLS[place]}"
        right = DIGITS[scene.digits[0]]
        others = rng.choice([name for name in DIGITS if name != right], 3, replace=False)
        options = [right, *map(str, others)]
        choice.append(row(n, f"which digit {where}?", right, options=options))
    counting = []
    for n, scene in enumerate(scenes):
        count = len(scene.digits)
        # Ten people: six write the word, three the number, one miscounts.
        people = [WORDS[count]] * 6 + [str(count)] * 3 + [WORDS[count + 1]]
        counting.append(row(n, "how many digits are there?", WORDS[count], answers=people))
    files = {
        "presence": presence(scenes, rng),
        "captions": captions,
        "choice": choice,
        "counting": counting,
    }
    for name, rows in files.items():
        lines = "".join(json.dumps(each) + "\n" for each in rows)
        (OUT / f"{name}.jsonl").write_text(lines)
    synonyms = {name: [str(digit)] for digit, name in enumerate(DIGITS)}
    (OUT / "objects.json").write_text(json.dumps(synonyms, indent=1) + "\n")
    print(", ".join(f"{name}.jsonl: {len(rows)}" for name, rows in files.items()))


if __name__ == "__main__":
    main()
