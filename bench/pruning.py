"""Scores and forms of pruning on stories260k, before and after recovery, over three seeds.

The data are 128 texts that the parent wrote (32 windows of them for scores), and 64 held out; recovery is 50
steps of 6 windows of 160 tokens at 1e-3, by KL to the parent or by cross-entropy. Then the time is measured to
find, score and cut units of a model of 6 layers with grouped queries.

    python -m bench.pruning [--out runs/pruning] [--only kl]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.depth import PARENT, write_texts
from modalign.cli.console import quiet_libraries
from modalign.compression.pruning.assemble import NATS, means
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.job import PARENT as UNPRUNED
from modalign.compression.pruning.job import Job
from modalign.compression.pruning.plans import Form
from modalign.compression.pruning.structure import Kind
from modalign.compression.pruning.workshop import Request, Workshop, open_workshop
from modalign.numbers import words
from modalign.numbers.estimate import Estimate
from modalign.numbers.pairs import NO_DIFFERENCE, differences, resamples_for
from modalign.numbers.trainings import hierarchical_bootstrap
from modalign.pages.markdown import table
from modalign.training.settings import LearningRates, TrainSettings

SEEDS, STEPS, BATCH, LENGTH, SCORED = 3, 50, 6, 160, 32
OBJECTIVES = ("kl", "cross_entropy")


@dataclass(frozen=True)
class Case:
    """A way to prune: share of the body to keep, form, score, kinds, and whether biases are added."""

    keep: float
    form: Form
    score: str
    kinds: tuple[Kind, ...] | None = None
    biased: bool = False

    @property
    def name(self) -> str:
        """Return its name in folders and in the table."""
        what = {("mlp",): "MLP"}.get(self.kinds or (), "MLP and groups")
        what = "layers" if self.form == "depth" else what
        return f"{what} by {self.score}{' with biases' if self.biased else ''}, {self.keep:.2f}"


CASES = (
    Case(0.80, "depth", "block_influence"),
    Case(0.80, "depth", "leave_one_out"),
    *(Case(0.80, "uniform", score, ("mlp",)) for score in ("random", "l2", "taylor", "fluctuation")),
    Case(0.80, "uniform", "fluctuation", ("mlp",), biased=True),
    *(
        Case(0.75, "uniform", score)
        for score in ("random", "l2", "taylor", "taylor_signed", "fluctuation")
    ),
    Case(0.75, "uniform", "fluctuation", biased=True),
)  # fmt: skip


def configured(out: Path, objective: str) -> PruneConfig:
    """Return the settings that all recoveries share."""
    train, held = write_texts(out)
    rates = LearningRates(llm=1e-3)
    return PruneConfig(
        model=str(PARENT),
        data=str(train),
        evaluation=str(held),
        recover="full",
        recover_by=objective,  # type: ignore[arg-type]
        recover_budget=f"{STEPS * BATCH}samples",
        training=TrainSettings(batch_size=BATCH, learning_rates=rates, device="cpu"),
        length=LENGTH,
        seeds=SEEDS,
    )


def opened(config: PruneConfig) -> Workshop:
    """Open the parent with all 128 texts to train on, 32 of them for scores, and the 64 to judge by."""
    shop = open_workshop(config, lambda name, done, total: None)
    texts = shop.texts
    every = [*texts.calibration, *texts.held_out]
    shop.texts = replace(texts, calibration=every[:SCORED], held_out=texts.task, task=[])
    for score in ("fluctuation", "taylor", "block_influence", "leave_one_out"):
        shop.rated(score, 0)
    shop.texts = replace(shop.texts, calibration=every)
    return shop


def run(out: Path, objectives: tuple[str, ...]) -> None:
    """Train what is missing, and print the table."""
    config = configured(out, "kl")
    shop = opened(config)
    job = Job(config, out, "full", shop.texts, torch.device("cpu"), shop.progress)
    losses: dict[tuple[str, str], Any] = {("", UNPRUNED): [job.judged(UNPRUNED).held_out]}
    kept = {UNPRUNED: "everything"}
    for case in CASES:
        request = Request(case.name, case.form, case.score, case.kinds)
        seeds = range(SEEDS) if case.score == "random" else (0,)
        for seed in seeds:
            name = f"{case.name}-{seed}"
            size = int(case.keep * shop.stack.size) + (
                shop.stack.layer_size if case.form == "depth" else 0
            )
            size = int(0.8001 * shop.stack.size) if case.form == "depth" else size
            found = shop.candidate(request, size, seed=seed, compensate=case.biased)
            kept[case.name] = found.plan.words(shop.stack)
            if not job.folder(name).is_dir():
                shop.write(found, job.folder(name))
        losses["", case.name] = [job.judged(f"{case.name}-{seed}").held_out for seed in seeds]
    for objective in objectives:
        job.config = configured(out, objective)
        for name in (UNPRUNED, *(case.name for case in CASES)):
            for seed in range(SEEDS):
                drawn = seed if "random" in name else 0
                folder = job.folder(name if name == UNPRUNED else f"{name}-{drawn}")
                place = out / "training" / objective / name.replace(" ", "_") / f"seed-{seed}"
                done = job.recovery(name, folder, seed).run(place, job.device)
                losses.setdefault((objective, name), []).append(done.scores.held_out)
                print(
                    f"{objective}: {name}, seed {seed}: {done.scores.held_out.nll.mean():.3f}",
                    flush=True,
                )
    show(shop, losses, kept, objectives)


def show(
    shop: Workshop,
    losses: dict[tuple[str, str], Any],
    kept: dict[str, str],
    objectives: tuple[str, ...],
) -> None:
    """Print losses above the parent, and the comparisons of the best of each size."""
    held = shop.texts.held_out
    parent = losses["", UNPRUNED][0].nll.mean()
    columns = ("", *objectives)
    still = [name for name in kept if "random" not in name]

    def above(loss: Estimate) -> str:
        value, low, high = (words.number(n - parent, 3) for n in (loss.value, loss.low, loss.high))
        return f"{value} ({low} to {high})"

    found = {
        column: means(
            {name: each for (kind, name), each in losses.items() if kind == column},
            lambda one: one.nll,
            held,
            () if column else still,
        )
        for column in columns
    }
    rows = [[name, kept[name], *(above(found[c][name]) for c in columns)] for name in kept]
    print(
        f"\nNats per token above the parent ({parent:.3f}); {SEEDS} trainings, {len(held)} windows.\n"
    )
    print(table(["pruned", "kept", "before", *(f"after {o}" for o in objectives)], rows))
    for objective in objectives:
        gains = {
            n: -np.array([one.nll for one in v]) for (k, n), v in losses.items() if k == objective
        }
        for share in ("0.80", "0.75"):
            names = [name for name in gains if name.endswith(share)]
            best = max(names, key=lambda name: gains[name].mean())
            drawn = hierarchical_bootstrap(gains, groups=None, resamples=resamples_for(len(gains)))
            pairs = differences(drawn, [(best, name) for name in names if name != best], unit=NATS)
            print(f"\n{objective}, {share}: {best} against")
            for each in pairs:
                said = {"first": "better", "second": "worse"}.get(each.verdict, NO_DIFFERENCE)
                print(f"  {each.second}: {words.interval(each.difference)}, {said}")


def speed(out: Path) -> None:
    """Print the CPU seconds to find, score and cut a 6-layer model with grouped queries."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    folder = out / "grouped"
    if not folder.exists():
        config = MistralConfig(vocab_size=512, hidden_size=256, intermediate_size=704, num_hidden_layers=6,
                               num_attention_heads=8, num_key_value_heads=4, sliding_window=None)  # fmt: skip
        MistralForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(PARENT).save_pretrained(folder)
    from modalign.compression.pruning.structure import find_stack

    config = configured(out, "kl").model_copy(update={"model": str(folder), "length": 64})
    shop = open_workshop(config, lambda name, done, total: None)
    shop.texts = replace(shop.texts, calibration=shop.texts.calibration[:10])
    began = time.process_time()
    shop.stack = find_stack(shop.opened.model)
    found = shop.candidate(Request("cut", "uniform", "taylor"), int(0.75 * shop.stack.size), seed=0)
    took = time.process_time() - began
    print(
        f"\n6 layers, grouped queries, {shop.parameters:,} parameters: found, scored by taylor on 10 texts of 64 "
        f"tokens and cut ({found.plan.words(shop.stack)}) in {took:.2f} s of CPU"
    )


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--only", choices=("kl", "cross_entropy", "speed"))
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    torch.set_num_threads(1)
    if given.only != "speed":
        run(given.out, (given.only,) if given.only else OBJECTIVES)
    speed(given.out)


if __name__ == "__main__":
    main()
