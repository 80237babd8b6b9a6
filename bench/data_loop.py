"""The data loop: is noise found, does finding it pay, and how often does a probe of clean data cry wolf?

    python -m bench.data_loop --out DIR [--only noise,clean] [--worlds 20] [--captions 1000]

On the starter's scenes, an aligned model is trained on questions (no captions), then tuned on captions of which
30 % belong to another scene. ``noise`` is the whole probe, with the oracle and the area under the ROC curve.
``clean`` is the same loop on clean captions, different ones in every world, with a control by chance; a
recommendation other than "no filter" is a false positive. Finished trainings are kept: run the same command again
to continue. Figures are printed and kept in DIR/data_loop.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.readers import read_records, write_records
from modalign.data.records import Message, Record
from modalign.files import write_atomically
from modalign.mixtures.config import ProbeConfig
from modalign.mixtures.probe import probe
from modalign.mixtures.probe_report import findings
from modalign.mixtures.probe_results import EVERYTHING, Probe
from modalign.numbers import words
from modalign.numbers.shares import share
from modalign.training.experiment import starter_experiment
from modalign.training.run import train_method
from modalign.training.settings import TrainSettings
from modalign.training.sources import DataFiles, Parts

NOISY = 0.3
QUESTIONS = 3000  # of the aligned model
TRAINING: dict[str, Any] = {
    "llm": "frozen",
    "learning_rates": {"connector": 1e-3, "llm": 0, "encoder": 0},
    "batch_size": 16,
    "device": "cpu",
}


def starter_records(captions: bool) -> list[Record]:
    """Return the starter's captions of the training scenes, or its other records with a scene."""
    path = DataFiles(**starter_experiment()["data"]).train
    found = [r for r in read_records(path).records if r.skill != "text"]
    return [record for record in found if (record.skill == "caption") == captions]


def swapped(records: Sequence[Record], rate: float, seed: int) -> list[Record]:
    """Give a share of the records another one's caption; ``clean`` says which still have a right one.

    Drawn apart from everything else: under the seeds by which media are exchanged, an exchange would give many of
    them the picture that their caption is of.
    """
    drawn = np.random.default_rng((seed, 30_11)).permutation(len(records))
    chosen = drawn[: round(rate * len(records))]
    answers = [record.answer for record in records]
    told = list(answers)
    for here, there in zip(chosen.tolist(), np.roll(chosen, 1).tolist(), strict=True):
        told[here] = answers[there]
    return [
        replace(
            record,
            messages=(*record.messages[:-1], Message("assistant", (said,))),
            extra={"clean": said == record.answer},
        )
        for record, said in zip(records, told, strict=True)
    ]


def scorer(out: Path, budget: str) -> Path:
    """Train the aligned model, once."""
    folder = out / "scorer"
    if not (folder / "result.json").exists():
        asked = starter_records(captions=False)
        every = max(1, len(asked) // QUESTIONS)
        write_records(asked[::every], out / "questions.jsonl")
        given = starter_experiment()
        settings = TrainSettings(**{**given["training"], "device": "cpu"})
        files = DataFiles(train=str(out / "questions.jsonl"), val=given["data"]["val"])
        train_method(
            "mlp",
            Parts(**given["parts"]),
            files,
            settings,
            budget,
            folder,
            factor=1.0,
            resume=True,
        )
    return folder / "model"


def world(folder: Path, parts: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Write the files of a world; returns where they are."""
    for name, records in parts.items():
        if not (folder / f"{name}.jsonl").exists():
            write_records(records, folder / f"{name}.jsonl")
    return {name: str(folder / f"{name}.jsonl") for name in parts}


def noise(out: Path, aligned: Path, wanted: int, held: int, seeds: int) -> Probe:
    """Probe ``wanted`` captions, 30 % of them another scene's; equally many held-out ones choose and judge."""
    captions = starter_records(captions=True)
    order = np.random.default_rng(0).permutation(len(captions)).tolist()
    mixed = [captions[place] for place in order]
    files = world(
        out / "noise",
        {
            "train": swapped(mixed[: -2 * held][:wanted], NOISY, 0),
            "val": mixed[-2 * held : -held],
            "eval": mixed[-held:],
        },
    )
    config = ProbeConfig.model_validate(
        {
            "model": str(aligned),
            "data": files,
            "operators": ["agreement"],
            "truth": "clean",
            "seeds": seeds,
            "training": TRAINING,
        }
    )
    return probe(config, out / "noise" / "run", resume=True)


def clean(out: Path, aligned: Path, number: int, small: int) -> Probe:
    """Probe ``small`` clean captions; half as many choose."""
    captions = starter_records(captions=True)
    order = np.random.default_rng((number, 5)).permutation(len(captions)).tolist()
    mixed = [captions[place] for place in order]
    folder = out / f"clean-{number}"
    parts = {"train": mixed[:small], "val": mixed[small : small + small // 2]}
    config = ProbeConfig.model_validate(
        {
            "model": str(aligned),
            "data": world(folder, parts),
            "operators": ["agreement", f"chance[seed={number}]"],
            "repetition": "never",
            "combine": "never",
            "seeds": 2,
            "training": TRAINING,
        }
    )
    return probe(config, folder / "run", resume=True)


def told_noise(found: Probe) -> None:
    """Print what the noisy world showed."""
    print(f"30 % of {found.records} captions swapped; {found.config.seeds} seeds")
    for row in found.rows:
        good = "" if row.good is None else f"  good {row.good:.3f}"
        test = "" if row.test is None else f"  test {words.interval(row.test)}"
        print(f"  {row.name:28} n {row.records:5}  {words.interval(row.figure)}{test}{good}")
    for name in ("candidates", "controls", "references"):
        for pair in getattr(found, name):
            print(
                f"  {pair.first} - {pair.second}: {words.interval(pair.difference)}, "
                f"p {pair.p_holm:.3f}: {pair.verdict}"
            )
    for said in findings(found):
        print(f"  {said}")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="noise,clean")
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--held", type=int, default=400)
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--scorer", default="12000samples")
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = given.only.split(",")
    kept: dict[str, Any] = {}
    aligned = scorer(given.out, given.scorer)
    print(f"aligned model, {given.scorer}: {aligned}", flush=True)
    if "noise" in wanted:
        found = noise(given.out, aligned, given.captions, given.held, given.seeds)
        told_noise(found)
        kept["noise"] = found.model_dump(mode="json")
    if "clean" in wanted:
        chosen = []
        for number in range(given.worlds):
            chosen.append(clean(given.out, aligned, number, given.small).chosen)
            print(f"clean world {number}: {chosen[-1]}", flush=True)
        wrong = share([each != EVERYTHING for each in chosen], over="worlds")
        print(f"recommended something else than no filter on clean data: {words.interval(wrong)}")
        kept["clean"] = {"chosen": chosen, "false positives": wrong.model_dump(mode="json")}
    write_atomically(given.out / "data_loop.json", json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
