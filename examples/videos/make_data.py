"""Write data/train.jsonl and data/test.jsonl: clips of one handwritten digit and then another.

Asked is which digit comes first, and which last. A clip and the same played backwards hold the same
frames (lossless, so that the codec leaves no trace of their order; twelve, so that four at the centres of
four segments are the same too): the answer is in the order of the frames and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent / "data"
CLIPS = {"train": 2000, "test": 400}
SIDE, DIGIT, FRAMES, RATE = 48, 20, 12, 6  # pixels, pixels, frames of a clip, frames a second
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def picture(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan (8, 8) somewhere in one quarter of a picture (SIDE, SIDE, 3)."""
    digit = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
    canvas = Image.new("L", (SIDE, SIDE))
    quarter = rng.integers(2, size=2) * SIDE // 2
    left, top = quarter + rng.integers(SIDE // 2 - DIGIT + 1, size=2)
    canvas.paste(digit.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC), (int(left), int(top)))
    return np.asarray(canvas.convert("RGB"))


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """A lossless video (FFV1 in Matroska)."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    """Write both files and ``data/clips/``; no scan is in both."""
    digits, rng = load_digits(), np.random.default_rng(0)
    (FOLDER / "clips").mkdir(parents=True, exist_ok=True)
    order = rng.permutation(len(digits.target))
    for split, scans in (("train", order[:1300]), ("test", order[1300:])):
        rows = []
        for number in range(CLIPS[split]):
            first, last = 0, 0
            while digits.target[first] == digits.target[last]:
                first, last = (int(scan) for scan in rng.choice(scans, 2))
            pictures = [picture(digits.images[scan], rng) for scan in (first, last)]
            path = f"clips/{split}-{number:04d}.mkv"
            write_video(FOLDER / path, [p for p in pictures for _ in range(FRAMES // 2)])
            for skill, scan in (("first", first), ("last", last)):
                question = f"which digit comes {skill}?"
                answer = WORDS[digits.target[scan]]
                row = {"video": path, "question": question, "answer": answer, "options": WORDS}
                rows.append(row | {"skill": skill})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
