"""NLVR: all four families on crowd-written sentences about pictures, in one comparison.

    python -m bench.nlvr --out DIR [--budget 6000samples] [--seeds 2] [--methods a,b,...]

The data are 989 pictures of ``../shared/data/nlvr`` (NLVR's development split), each with a sentence that is
true or false. A sentence goes with up to four pictures, so sentences are split by their number in the file
name, which keeps sentences and pictures on one side (about 60 % of sentences for training, 15 % for validation
and 25 % for evaluation). The language model is ``../shared/models/stories260k``, tuned in every method;
pictures enter as raw patches (no pretrained encoder) or, for tools, as NLVR's description of the scene, in
words. ``captions_first`` trains its first stage on those words as captions of the training pictures.
``text_only:full`` reads the sentence alone.

A language model of 0.26 M parameters that knows children's stories cannot be expected to reason about
scenes: the point is that all families run from the same records, and that the report says which methods beat
the majority answer, if any. An interrupted run continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from modalign.files import write_atomically
from modalign.tools.registry import BUILT_IN

SHARED = Path(__file__).parents[2] / "shared"
METHODS = (
    "linear",
    "avgpool_mlp",
    "resampler",
    "vq_codes",
    "tool:scene:full",
    "avgpool_mlp+captions_first",
    "text_only:full",
)
# The built-in chain, leaving room for a caption: the language model reads 512 tokens in all.
SCENE = {**BUILT_IN["structure"], "budget": 300}
SETTINGS = (  # of the comparison, the same for every method
    "parts.image_size=64",
    "parts.patch_size=8",
    "training.learning_rates.connector=1e-3",
    "training.learning_rates.llm=5e-4",
    "training.batch_size=16",
    f"parts.tools={json.dumps({'scene': SCENE})}",
)
SIDES = (("eval", 25), ("val", 40), ("train", 100))  # up to which of a hundred sentences


def sentence_number(image: str) -> str:
    """Return the sentence's number, as in ``images/dev-1572-0-0.png``."""
    found = re.search(r"-(\d+)-", image)
    assert found is not None, image
    return found[1]


def side_of(number: str) -> str:
    """Choose a sentence's side by a hash of its number."""
    place = int(hashlib.sha256(number.encode()).hexdigest(), 16) % 100
    return next(side for side, below in SIDES if place < below)


def rows_of(record: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the question about a picture, and its caption from the scene structure."""
    number = sentence_number(record["image"])
    name = Path(record["image"]).stem
    image = {"path": str(folder / record["image"]), "annotations": record["boxes"]}
    question = f"{record['sentence'].strip().rstrip('.')}. true or false?"
    asked = {"image": image, "question": question, "answer": record["label"]}
    told = {"image": image, "caption": caption(record["boxes"])}
    return [
        {"id": name, **asked, "skill": "sentence", "group": number},
        {"id": f"{name}-caption", **told, "skill": "caption", "group": number},
    ]


def caption(boxes: list[list[dict[str, Any]]]) -> str:
    """Describe each box's objects in a few words, from left to right."""
    names = {"#0099ff": "blue"}
    said = []
    for box in boxes:
        ordered = sorted(box, key=lambda item: item["x_loc"])
        said.append(
            " ".join(f"{names.get(i['color'], i['color']).lower()} {i['type']}" for i in ordered)
        )
    return "; ".join(said)


def write_data(out: Path, folder: Path) -> dict[str, int]:
    """Write train, val and eval; only the training side gets captions."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side, _ in SIDES}
    for record in json.loads((folder / "nlvr.json").read_text(encoding="utf-8")):
        side = side_of(sentence_number(record["image"]))
        asked, told = rows_of(record, folder)
        rows[side] += [asked, told] if side == "train" else [asked]
    for side, own in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in own)
        write_atomically(out / f"{side}.jsonl", text)
    return {side: len(own) for side, own in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="6000samples")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    folder = SHARED / "data" / "nlvr"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: this bench needs its pictures")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    counts = write_data(out, folder.resolve())
    print("records:", ", ".join(f"{side} {count}" for side, count in counts.items()))
    command = [sys.executable, "-m", "modalign", "compare", "--resume", "--train-llm", "full"]
    command += [
        "--llm",
        str((SHARED / "models" / "stories260k").resolve()),
        "--encoder",
        "image=none",
    ]
    for side in ("train", "val", "eval"):
        command += [f"--{side}", str(out / f"{side}.jsonl")]
    command += ["--methods", arguments.methods, "--budget", arguments.budget]
    command += ["--seeds", str(arguments.seeds), "--out", str(out / "compare")]
    for setting in SETTINGS:
        command += ["--set", setting]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
