"""Edit models without tuning settings for them: every method with the settings it measures itself.

    python -m bench.editing_untuned --out DIR [--families gpt2,qwen3] [--sizes 10,100] [--draws 2]

One small model per family, each with its own names and facts (``bench.editable``, full size: about ten
minutes on one core), is edited as a user would: ``edit run MODEL EDITS`` without settings. S, ES, PS and NS
are CounterFact's, on the two other wordings and ten neighbours of each edit. Rows with ``published`` show
the authors' settings, rows with a change (``pmet, FFN alone``) what a part of PMET is worth.

Every model and every cell is kept; run the same command again to continue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.editable import SIZES, Family, load, make, save
from bench.invented import counterfactuals
from modalign.cli.console import bars, quiet_libraries
from modalign.editing.benchmarks.evaluate import evaluate_edits
from modalign.editing.edits import Edit
from modalign.editing.run import RunRequest, run_edit
from modalign.errors import ModalignError
from modalign.files import write_atomically
from modalign.patches import load_patch, view

SCORES = ("S", "ES", "PS", "NS")
UNTUNED: tuple[Family, ...] = ("gpt2", "qwen3", "neox", "gemma3", "llama")
SEED = 11  # of the first model's names and training
METHODS = ("memit", "pmet", "alphaedit", "rome")


@dataclass(frozen=True)
class Row:
    """A row of the table: a method, with published settings or with changes."""

    method: str
    change: tuple[tuple[str, Any], ...] = ()
    published: bool = False

    @property
    def name(self) -> str:
        """Return its name in the table."""
        changes = [f"{name}={value}" for name, value in self.change]
        return ", ".join([self.method, *changes, *(["published"] if self.published else [])])


ROWS = (
    *(Row(method) for method in METHODS),
    *(Row(method, published=True) for method in METHODS),
    Row("pmet", (("attention_vector", False),)),
    Row("pmet", (("spread", "equal"),)),
    Row("pmet", (("attention_vector", False), ("spread", "equal"))),
)


def model_folder(out: Path, family: Family, seed: int) -> Path:
    """Return the family's model, trained first if it is missing."""
    folder = out / family
    if not (folder / "recipe.json").exists():
        recipe = replace(SIZES["full"], seed=seed)
        save(
            make(family, recipe, lambda line: print(f"{family}: {line}", flush=True)),
            recipe,
            folder,
        )
    return folder


def edits_file(folder: Path, size: int, draw: int) -> tuple[Path, list[Edit]]:
    """Write edits of facts of the model's world, as a user's file."""
    edits = counterfactuals(load(folder).world, size, seed=1000 + draw)
    rows = [
        {
            "id": edit.id,
            "subject": edit.subject,
            "prompt": edit.relation,
            "target": edit.target,
            "truth": edit.truth,
            "paraphrases": list(edit.paraphrases),
            "neighbours": [{"prompt": n.prompt, "answer": n.answer} for n in edit.neighbours],
        }
        for edit in edits
    ]
    file = folder / f"edits-{size}-{draw}.json"
    write_atomically(file, json.dumps(rows).encode())
    return file, edits


def cell(folder: Path, row: Row, size: int, draw: int) -> dict[str, Any]:
    """Return one run's scores, reading them if it was done before."""
    kept = folder / "cells" / f"{row.name}-{size}-{draw}.json".replace(" ", "")
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    file, edits = edits_file(folder, size, draw)
    patch = folder / "patch.safetensors"
    request = RunRequest(
        str(folder),
        file,
        patch,
        method=row.method,
        settings=dict(row.change),
        basis="published" if row.published else "auto",
        overwrite=True,
        cache=folder / "cache",
    )
    began = time.process_time()
    done: dict[str, Any] = dict.fromkeys(SCORES, 0.0)
    try:
        with bars() as progress:
            run_edit(request, progress)
        done["settings"] = load_patch(patch).header.settings
    except ModalignError as error:  # nothing was written
        done["failed"] = str(error).splitlines()[0]
    done["seconds"] = time.process_time() - began
    if "failed" not in done:
        made = load(folder)
        edited = view(made.model, load_patch(patch))
        scored = evaluate_edits(
            edited, made.tokenizer, edits, "counterfact", generate=False, resamples=1
        )
        done |= {name: scored.metrics[name].value for name in SCORES if name in scored.metrics}
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, json.dumps(done).encode())
    return done


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", default=",".join(UNTUNED))
    parser.add_argument("--sizes", default="10,100")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--rows", default="", help="only rows whose name begins so")
    arguments = parser.parse_args()
    quiet_libraries()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    rows = [row for row in ROWS if row.name.startswith(arguments.rows)]
    families = arguments.families.split(",")
    folders = {
        family: model_folder(arguments.out, family, SEED + UNTUNED.index(family))
        for family in families
    }
    for size in sizes:
        print(f"\n{size} edits, S (ES, PS, NS), means over {arguments.draws} draws\n")
        print("| settings | " + " | ".join(families) + " |")
        print("|---" * (1 + len(families)) + "|", flush=True)
        for row in rows:
            words = []
            for folder in folders.values():
                cells = [cell(folder, row, size, draw) for draw in range(arguments.draws)]
                s, *parts = (statistics.mean(each[name] for each in cells) for name in SCORES)
                words.append(f"{s:.1f} ({', '.join(f'{part:.0f}' for part in parts)})")
            print(f"| {row.name} | " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    main()
