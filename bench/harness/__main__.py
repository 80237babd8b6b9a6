"""Serve a model, let both harnesses score it, and compare with ``modalign eval`` record by record.

    make harness [MODEL=folder]
    python -m bench.harness [--model folder] [--count 200] [--out build/harness/run]

Both harnesses have their own environments (``build/harness``, made by ``make harness``). Without a model, one is
trained on the starter for a few seconds. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from bench.harness.data import write_questions
from bench.harness.equality import Equality, compare
from bench.harness.tools import HarnessError, lm_eval, lmms_eval, modalign_eval, run, serving
from modalign.files import write_atomically

ROOT = Path("build/harness")
TOOLS = {
    "lm-eval": ".requirements",
    "lmms-eval": ".installed",
}  # the file that make leaves when each is complete


def python_of(tool: str) -> Path:
    """Return the interpreter of a harness's own environment."""
    return (ROOT / tool / "bin" / "python").absolute()


def missing_tools() -> list[str]:
    """List the harnesses whose environment is missing or incomplete."""
    return [tool for tool, mark in TOOLS.items() if not (ROOT / tool / mark).exists()]


def trained(folder: Path) -> Path:
    """Return a model of the starter, training it unless that was done before."""
    model = folder / "model"
    if not (model / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print("training a small model on the starter", file=sys.stderr)
        command = [
            sys.executable,
            "-m",
            "modalign",
            "train",
            "--method",
            "mlp",
            "--train-llm",
            "full",
        ]
        options = ["--budget", "6000samples", "--factor", "1", "--out", folder.absolute()]
        run([*command, *options], folder.parent.absolute() / "train.log")
    return model


def measure(model: Path, work: Path, count: int) -> list[Equality]:
    """Measure everything in a fresh folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    files = write_questions(work, model, count)
    print("modalign eval", file=sys.stderr)
    ours = modalign_eval(model, files.scenes, work / "scenes.modalign.jsonl")
    choices = modalign_eval(
        model, files.choices, work / "choices.modalign.jsonl", "--task", "choice"
    )
    with serving(model, work / "server.log") as url:
        print(f"lmms-eval at {url}", file=sys.stderr)
        theirs = lmms_eval(python_of("lmms-eval"), url, work, files.scenes_lmms)
        print(f"lm-eval at {url}", file=sys.stderr)
        scored = lm_eval(python_of("lm-eval"), url, work, model, files.choices_lm)
    return [compare("lmms-eval", ours, theirs), compare("lm-eval", choices, scored)]


def versions() -> dict[str, str]:
    """Return the versions of the harnesses and of their main dependencies."""
    found = {}
    for tool in TOOLS:
        listed = subprocess.run(
            [python_of(tool), "-m", "pip", "list", "--format", "json"],
            capture_output=True,
            text=True,
            check=True,
        )
        for each in json.loads(listed.stdout):
            if each["name"].replace("_", "-") in (tool, "openai", "datasets", "transformers"):
                found[f"{tool}: {each['name']}"] = each["version"]
    return found


def table(found: list[Equality]) -> str:
    """Write a line per harness."""
    lines = [
        f"{'harness':12}{'n':>5}{'modalign':>10}{'harness':>9}{'scores':>10}{'outputs':>10}  largest gap"
    ]
    for each in found:
        gap = "-" if each.largest is None else f"{each.largest:.1e}"
        lines.append(
            f"{each.tool:12}{each.n:>5}{each.ours:>10.1%}{each.theirs:>9.1%}"
            f"{f'{each.scores}/{each.n}':>10}{f'{each.outputs}/{each.n}':>10}  {gap}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run both harnesses; return 0 if all records are equal."""
    parser = argparse.ArgumentParser(prog="python -m bench.harness", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; else one is trained")
    parser.add_argument("--count", type=int, default=200, help="questions of either kind")
    parser.add_argument("--out", type=Path, default=ROOT / "run", help="made anew")
    given = parser.parse_args()
    if missing := missing_tools():
        print(
            f"{', '.join(missing)}: no environment under {ROOT}; run make harness", file=sys.stderr
        )
        return 2
    model = (given.model or trained(ROOT / "trained")).absolute()
    try:
        found = measure(model, given.out.absolute(), given.count)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(found))
    report = {"model": str(model), "versions": versions(), "equality": [asdict(e) for e in found]}
    write_atomically(given.out / "equality.json", json.dumps(report, indent=2) + "\n")
    for each in found:
        if not each.holds:
            rows = ", ".join(map(str, each.different[:20]))
            print(f"{each.tool}: records {rows} differ; see {given.out}", file=sys.stderr)
    return 0 if all(each.holds for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
