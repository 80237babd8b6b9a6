"""Peak memory of the verbs on a LLaVA JSON file larger than memory: how does it grow with the rows?

    python -m bench.beyond_memory --rows 10000 100000 1000000

Each verb runs in its own process on the same rows (each with one of 64 small pictures, so that decoding and
features do not grow with the rows), with the parts of the starter. It prints rows, size of the file, CPU seconds,
peak resident memory, and the growth per row between the smallest and the largest file. A verb that fails, or
takes longer than ``--limit``, says so in its row; nothing is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 64
QUICK = ["--budget", "32samples", "--device", "cpu"]
READ = (
    "import sys; from modalign.data.readers import open_rows\n"
    "print(sum(1 for _ in open_rows(sys.argv[1])[0]))"
)


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Attributes:
        seconds: CPU seconds of it and its children.
        peak: most resident bytes of the largest of them.
        end: how it ended.
    """

    seconds: float
    peak: int
    end: str


def write_rows(file: Path, rows: int) -> None:
    """Write a LLaVA file, row by row."""
    pictures = file.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        values = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{number}.png")
    with file.open("w", encoding="utf-8") as opened:
        opened.write("[")
        for number in range(rows):
            asked = f"<image>\nHow many digits are there in scene {number}?"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "two"}]
            row = {"id": str(number), "image": f"pictures/{number % PICTURES}.png"}
            opened.write(",\n" * bool(number) + json.dumps(row | {"conversations": turns}))
        opened.write("]\n")


def commands(file: Path, out: Path) -> dict[str, list[str]]:
    """Return the verbs' commands, by name."""
    verb = [sys.executable, "-m", "modalign"]
    data = ["--train", str(file)]
    return {
        "rows only": [sys.executable, "-c", READ, str(file)],
        "data curate": [*verb, "data", "curate", str(file), "-o", str(out / "curated")],
        "doctor": [*verb, "doctor", "--method", "linear", *data, *QUICK],
        "train": [*verb, "train", "--method", "linear", *data, "--out", str(out / "train"), *QUICK],
        "compare --dry-run": [
            *verb, "compare", "--methods", "linear", *data, "--out", str(out / "compare"), "--dry-run", *QUICK,
        ],
        "eval": [*verb, "eval", str(out / "train" / "model"), str(file), "--max-new-tokens", "1"],
    }  # fmt: skip


def measured(command: list[str], limit: float, log: Path) -> Measured:
    """Run a command; after ``limit`` seconds it and all its children are ended."""
    with log.open("wb") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        late = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        _, status, usage = os.wait4(process.pid, 0)
        over = not late.is_alive()
        late.cancel()
    code = os.waitstatus_to_exitcode(status)
    end = f"stopped after {limit:g} s" if over else "" if code == 0 else f"exit code {code}"
    return Measured(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, end)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", help="verbs, as the table names them")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds of a verb")
    asked = parser.parse_args()
    found: dict[str, list[tuple[int, int]]] = {}
    print(
        "| verb | rows | file MB | CPU s | peak MB | |",
        "|---|---|---|---|---|---|",
        sep="\n",
        flush=True,
    )
    for rows in sorted(asked.rows):
        with tempfile.TemporaryDirectory(prefix="beyond-memory-") as name:
            folder = Path(name)
            file = folder / "llava.json"
            write_rows(file, rows)
            for verb, command in commands(file, folder).items():
                if asked.only and verb not in asked.only:
                    continue
                one = measured(command, asked.limit, folder / "log.txt")
                lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
                why = f"{one.end}: {lines[-1][:90] if lines else ''}" if one.end else ""
                size = file.stat().st_size / 1e6
                print(
                    f"| {verb} | {rows:,} | {size:.0f} | {one.seconds:.0f} | {one.peak / 1e6:.0f} | {why} |",
                    flush=True,
                )
                if not one.end:
                    found.setdefault(verb, []).append((rows, one.peak))
    for verb, points in found.items():
        (few, low), (many, high) = points[0], points[-1]
        if many > few:
            print(f"{verb}: {(high - low) / (many - few):.0f} bytes a row", flush=True)


if __name__ == "__main__":
    main()
