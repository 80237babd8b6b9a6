"""Write data/train.jsonl and data/test.jsonl: handwritten digits, each as a picture and as eight vectors.

The picture is the scan enlarged; the vectors are its eight rows of eight numbers. Either is enough to
answer, so that a model may learn to lean on one and fail without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "data"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    """Write both files and ``data/images/``; no scan is in both."""
    digits = load_digits()
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(digits.target))
    for split, scans in (("train", order[:1300]), ("test", order[1300:])):
        rows = []
        for scan in scans.tolist():
            digit, pixels = int(digits.target[scan]), digits.images[scan]
            path = f"images/{scan:04d}.png"
            image = Image.fromarray((pixels * (255 / 16)).round().astype("uint8"))
            image.resize((48, 48)).convert("RGB").save(FOLDER / path)
            for skill, question, answer, options in (
                ("naming", "which digit is this?", WORDS[digit], WORDS),
                (
                    "parity",
                    "is the digit even or odd?",
                    ("even", "odd")[digit % 2],
                    ["even", "odd"],
                ),
            ):
                row = {"image": path, "vectors": pixels.tolist(), "question": question}
                rows.append(row | {"answer": answer, "options": options, "skill": skill})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
