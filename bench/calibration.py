"""Do a comparison's intervals and its confidence hold for other trainings? Measured on real ones.

The demo's twelve methods are trained on the starter under ten seeds each, every seed with learning-rate trials
of its own: 120 trainings, about ten minutes of one core a seed. Each is kept; what is there is not trained again.

    python -m bench.calibration train [--seeds 10] [--out runs/calibration]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from modalign.cache import cache_directory
from modalign.cli.console import quiet_libraries, stdout
from modalign.comparison.config import CompareConfig, load_config
from modalign.comparison.job import Job, load_scores, run_job
from modalign.comparison.prepared import Prepared, prepare
from modalign.runs import run_folder

SEEDS = 10


def configuration(**changes: object) -> CompareConfig:
    """The demo's, one thread a training."""
    return load_config(None, {"jobs": os.cpu_count() or 1, **changes})[0]


def prepared(out: Path, config: CompareConfig) -> Prepared:
    """Write the data that the trainings read, or find them written."""
    with run_folder(out, config.model_dump(mode="json"), resume=True) as folder:
        found = prepare(config, folder.path, cache_directory())
        folder.begin()
        found.store()
    return found


def train(out: Path, seeds: int) -> None:
    """Train what is missing: all methods under one seed before the next, so that any beginning can be used."""
    given = prepared(out, configuration())
    jobs = [Job(out, method.name, seed) for seed in range(seeds) for method in given.methods]
    missing = [job for job in jobs if job.result() is None]
    torch.set_num_threads(1)
    started = time.monotonic()
    for done, job in enumerate(missing, start=1):
        result = run_job(out, job.key, filled=True, own_trials=True)
        left = (time.monotonic() - started) / done * (len(missing) - done)
        reached = load_scores(job.run)["val"].mean()
        stdout.print(
            f"{len(jobs) - len(missing) + done} of {len(jobs)}: {job.name}: {reached:.1%} on validation, "
            f"rate x{result.factor:.3g}, {result.seconds:.0f} s; about {left / 60:.0f} min left",
            highlight=False,
        )


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["train"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    options = parser.parse_args()
    quiet_libraries()
    if options.what == "train":
        train(options.out, options.seeds)


if __name__ == "__main__":
    main()
