"""Write a small data set: scanned digits as PNG files, two questions about each, as JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "data"
COUNTS = {"train": 600, "test": 200}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    """Write ``data/train.jsonl``, ``data/test.jsonl`` and ``data/images/``."""
    digits = load_digits()
    (FOLDER / "images").mkdir(parents=True, exist_ok=True)
    start = 0
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            digit = int(digits.target[start + number])
            pixels = (digits.images[start + number] * 255 / 16).round().astype("uint8")
            path = f"images/{split}-{number:04d}.png"
            Image.fromarray(pixels).resize((48, 48)).convert("RGB").save(FOLDER / path)
            for skill, question, answer in (
                ("naming", "which digit is this?", WORDS[digit]),
                ("parity", "is the digit even or odd?", "odd" if digit % 2 else "even"),
            ):
                rows.append({"image": path, "question": question, "answer": answer, "skill": skill})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{split}.jsonl").write_text(lines)
        start += count


if __name__ == "__main__":
    main()
