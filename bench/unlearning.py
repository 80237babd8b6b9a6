"""Forgetting: every method on a small GPT-J that knows 320 invented facts, in three wordings.

    python -m bench.unlearning --out DIR [--seeds 3] [--methods npo-lora,...] [--subjects 8]

It forgets all facts of eight subjects, in the first wording only, and retains 96 other facts in all wordings. An
answer is right if its summed log-likelihood is the largest among the relation's objects. *never knew* asks the
original model about invented names; *relearned* is after twenty steps on eight of the 32 facts, scored on the
others. Seeds take other subjects in turn. Finished rows are kept in DIR/rows.jsonl: run the same command again to
continue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.readers import write_records
from modalign.data.records import Message, Record, Source
from modalign.data.reformatting import with_invented_subjects
from modalign.evaluation.likelihood import score_options
from modalign.models.open import open_model
from modalign.unlearning.attacks import WEIGHT_ATTACKS, attacked, relearned
from modalign.unlearning.run import Unlearning, unlearn

MODEL = Path(__file__).parents[2] / "shared" / "models" / "editable_gptj"
WORDINGS = 3
RELEARN = 8
METHODS: dict[str, dict[str, Any]] = {
    "ascent": {"method": "ascent", "mode": "full", "steps": 30},
    "difference": {"method": "difference", "mode": "full"},
    "npo": {"method": "npo", "mode": "full"},
    "simnpo": {"method": "simnpo", "mode": "full"},
    "undial": {"method": "undial", "mode": "full", "rate": 3e-4},
    "rmu": {"method": "rmu", "mode": "full"},
    "npo-lora": {"method": "npo", "mode": "lora"},
    "simnpo-lora": {"method": "simnpo", "mode": "lora"},
    "edit": {"method": "edit"},
}


def facts(subjects: Sequence[str], wordings: Sequence[int]) -> list[Record]:
    """Return the facts of some subjects in some wordings, with the relation's objects as options."""
    told = json.loads((MODEL / "facts.json").read_text())
    found = []
    for subject, relation, answer in told["facts"]:
        if subject not in subjects:
            continue
        phrasings, objects = told["rels"][relation]
        for number in wordings:
            said = (
                Message("user", (phrasings[number].format(subject),)),
                Message("assistant", (answer,)),
            )
            found.append(
                Record(
                    f"{subject}/{relation}/{number}",
                    said,
                    Source("facts.json", 1),
                    group=subject,
                    options=tuple(objects),
                    extra={"relation": relation, "subject": subject},
                )
            )
    return found


def right(model: Any, reader: Any, records: Sequence[Record]) -> np.ndarray:
    """Return (n,) 1 where the answer is likelier than all other objects."""
    scores = score_options(model, reader, records, [record.options for record in records])
    best = [max(each, key=lambda option: option.loglikelihood).text for each in scores]
    return np.array([b == r.answer for b, r in zip(best, records, strict=True)], dtype=float)


def measured(
    model: Any, reader: Any, forget: Sequence[str], retain: Sequence[str], seed: int
) -> dict[str, float]:
    """Return the columns of one row."""
    own = [facts(forget, [number]) for number in range(WORDINGS)]
    found = {
        f"wording {n + 1}": float(right(model, reader, each).mean()) for n, each in enumerate(own)
    }
    if retain:
        found["retain"] = float(right(model, reader, facts(retain, range(WORDINGS))).mean())
    with attacked(model, WEIGHT_ATTACKS["4 bits"]):
        found["4 bits, wording 2"] = float(right(model, reader, own[1]).mean())
    again, asks = relearned(model, reader, own[0][:RELEARN], seed=seed)
    found["relearned, others"] = float(right(again, asks, own[0][RELEARN:]).mean())
    return found


def row(name: str, seed: int, out: Path, subjects: list[str], count: int) -> dict[str, float]:
    """Return what one method does under one seed."""
    start = seed * count % len(subjects)
    turned = [*subjects[start:], *subjects[:start]]
    forget, retain = turned[:count], turned[count : count + 24]
    if name in ("knows", "never knew"):
        model, reader = open_model(MODEL)
        if name == "knows":
            return measured(model, reader, forget, retain, seed)
        asked = [with_invented_subjects(facts(forget, [n]), seed) for n in range(WORDINGS)]
        return {
            f"wording {n + 1}": float(right(model, reader, each).mean())
            for n, each in enumerate(asked)
        }
    files = {}
    for role, whose, wordings in (("forget", forget, [0]), ("retain", retain, range(WORDINGS))):
        files[role] = str(out / f"{role}-{seed}.jsonl")
        write_records(facts(whose, list(wordings)), files[role])
    patch, final = out / f"{name}-{seed}.safetensors", out / f"{name}-{seed}"
    options = {"steps": 250, **METHODS[name]}
    unlearn(
        Unlearning(MODEL, **files, out=patch, final=final, seed=seed, **options), overwrite=True
    )
    model, reader = open_model(final)
    return measured(model, reader, forget, retain, seed)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    told = json.loads((MODEL / "facts.json").read_text())["facts"]
    subjects = list(dict.fromkeys(subject for subject, _, _ in told))
    names = ["knows", "never knew", *given.methods.split(",")]
    for seed in range(given.seeds):
        for name in names:
            if any(each["name"] == name and each["seed"] == seed for each in done):
                continue
            found = {
                "name": name,
                "seed": seed,
                **row(name, seed, given.out, subjects, given.subjects),
            }
            with file.open("a") as lines:
                lines.write(json.dumps(found) + "\n")
            done.append(found)
            print(found, flush=True)
    print(table(done))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means over seeds as Markdown."""
    columns = list(
        dict.fromkeys(key for each in rows for key in each if key not in ("name", "seed"))
    )
    lines = [f"| method | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(each["name"] for each in rows):
        own = [each for each in rows if each["name"] == name]
        cells = [f"{np.mean([e[c] for e in own]):.2f}" if c in own[0] else "" for c in columns]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
