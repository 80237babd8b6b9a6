"""Step ``editing``: change facts that SmolLM2 says, as a user would, without settings.

CounterFact's edits whose true object the model gives greedily are kept; every method edits draws of 1, 10, 50 and
100 of them by ``modalign edit run`` and is judged by ``modalign eval --task counterfact`` in the plain and in the
chat form. The published set used here has one paraphrase and one neighbour per edit. The first draw's time
includes the search for settings; later draws find it done.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.spoken_digits import SHARED
from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.readers import read_edits
from modalign.files import write_atomically
from modalign.models.open import open_model

FACTS = SHARED / "data" / "editing" / "counterfact.json"
TEXT = SHARED / "data" / "text" / "wiki_demo.txt"
METHODS = ("memit", "pmet", "alphaedit", "rome", "ft")
DRAWS = {True: 2, False: 3}
COUNTS = {True: (10,), False: (1, 10, 50, 100)}
LOOKED_AT = {True: 400, False: 1500}  # number of edits whose true object is asked for
SHOWN = ("S", "ES", "PS", "NS", "free_rewrite", "free_paraphrase", "drift_kl")


@dataclass(frozen=True)
class Measured:
    """What a command printed, its CPU seconds and peak bytes, and the last line of its error."""

    said: str
    seconds: float
    peak: int
    complaint: str


def run(
    out: Path, methods: list[str], quick: bool, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Edit and judge what is missing; return the table's rows by method and number of edits."""
    folder, model = out / "editing", out / "models" / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    known = _known(folder, model, quick, say)
    found = {}
    for count in COUNTS[quick]:
        if count > len(known):
            say(f"the model says {len(known)} of the facts: no draw of {count}")
            continue
        for method in methods:
            cells = []
            for draw in range(DRAWS[quick]):
                kept = folder / f"{method}-{count}-{draw}.json"
                if not kept.exists():
                    say(f"{method}, {count} edits, draw {draw}")
                    rows = random.Random(draw).sample(known, count)
                    write_atomically(kept, json.dumps(_cell(folder, model, method, rows)).encode())
                cells.append(json.loads(kept.read_text()))
            found[f"{method}, {count}"] = _means(cells)
    return found


def _known(folder: Path, model: Path, quick: bool, say: Callable[[str], None]) -> list[Any]:
    """Return the published rows of edits whose true object the model gives greedily."""
    kept = folder / f"known-{LOOKED_AT[quick]}.json"
    if not kept.exists():
        published = json.loads(FACTS.read_text(encoding="utf-8"))
        rows = list({row["prompt"]: row for row in published}.values())[: LOOKED_AT[quick]]
        say(f"asking for {len(rows)} facts")
        opened, tokenizer = open_model(model)
        asked_for = folder / "facts.json"
        write_atomically(asked_for, json.dumps(rows).encode())
        edits = read_edits(asked_for)
        asked = [Question(edit.prompt, (edit.truth or "",)) for edit in edits]
        right = [answer.right for (answer,) in score(opened, tokenizer, asked)]
        said = [row for row, known in zip(rows, right, strict=True) if known]
        write_atomically(kept, json.dumps(said).encode())
    return list(json.loads(kept.read_text()))


def _cell(folder: Path, model: Path, method: str, rows: list[Any]) -> dict[str, Any]:
    """Compute one patch and its scores in both forms, or say what failed."""
    edits, patch = folder / "edits.json", folder / "patch.safetensors"
    edits.write_text(json.dumps(rows), encoding="utf-8")
    words = [*("edit", "run", model, edits, "-o", patch, "--method", method), "--overwrite"]
    written = _measured(folder, *words, "--text", TEXT, "--json")
    cost = {"seconds": written.seconds, "peak": written.peak}
    if written.complaint:
        return {"failed": written.complaint, **cost}
    words = ["eval", model, "--task", "counterfact", "--edits", edits, "--patch", patch]
    judged = _measured(folder, *words, "--form", "both", "--text", TEXT, "--json")
    if judged.complaint:
        raise SystemExit(judged.complaint)
    return {"scores": json.loads(judged.said), **cost}


def _measured(folder: Path, *arguments: str | Path) -> Measured:
    """Run a command in a separate process."""
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    said, complained = folder / "stdout", folder / "stderr"
    with said.open("w") as output, complained.open("w") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = complained.read_text().strip().splitlines() if process.returncode else []
    return Measured(
        said.read_text(),
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,  # Linux counts it in KiB
        lines[-1] if lines else "",
    )


def _means(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over draws, by form; a draw in which nothing was written scores 0 except on neighbours."""
    found: dict[str, Any] = {
        "seconds": [cell["seconds"] for cell in cells],
        "peak": max(cell["peak"] for cell in cells),
        "failed": [cell["failed"] for cell in cells if "failed" in cell],
    }
    done = [cell["scores"] for cell in cells if "scores" in cell]
    for form, scores in (("plain", done), ("chat", [each["in_chat"] for each in done])):
        found[form] = {
            name: statistics.mean(each["metrics"][name]["value"] for each in scores)
            for name in SHOWN
            if scores and all(name in each["metrics"] for each in scores)
        }
        found[f"{form} before"] = {
            name: statistics.mean(each["before"][name]["value"] for each in scores)
            for name in SHOWN
            if scores and all(name in (each["before"] or {}) for each in scores)
        }
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return scores in both forms, time and memory as Markdown; before the edits in brackets."""
    lines = [
        f"| method, edits | form | {' | '.join(SHOWN)} | CPU s of each draw | peak, GB |",
        "|---" * (len(SHOWN) + 4) + "|",
    ]
    for name, row in found.items():
        seconds = ", ".join(f"{each:.0f}" for each in row["seconds"])
        for form in ("plain", "chat"):
            before = row[f"{form} before"]
            cells = [
                f"{value:.3g}" + (f" ({before[key]:.3g})" if key in before else "")
                if (value := row[form].get(key)) is not None
                else ""
                for key in SHOWN
            ]
            lines.append(
                f"| {name} | {form} | {' | '.join(cells)} | {seconds} | {row['peak'] / 1e9:.1f} |"
            )
        lines += [f"| {name} | nothing written: {words} |" for words in row["failed"]]
    return "\n".join(lines)
