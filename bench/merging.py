"""Merges of a real small model's fine-tunes, mixtures by merged experts, and speed compared with mergekit.

``table``: stories260k is trained further on Shakespeare and on instructions (100 steps of 6 texts of 192 tokens,
at a rate of 5e-4), and the two are merged by every method; the base, the parents and joint training are shown for
comparison. The last tenth of every domain judges, and the tenth before it chooses (``learned`` learns on it, and
one grid point is chosen on it). Three seeds vary the order of the training data, and what DARE draws.

``mixture``: do experts merged with a mixture's weights rank six mixtures of three domains as trainings do?

``speed``: seconds and peak memory of the same merge of two random models of 135 M parameters by `modalign merge`
and by mergekit, in turn, each in its own process. ``make oracles`` makes mergekit's environment.

    python -m bench.merging table [--seeds 3] [--out runs/merging]
    python -m bench.merging mixture [--seeds 3]
    python -m bench.merging speed [--mergekit build/oracles/mergekit/bin/python] [--rounds 3]

The first two need ``../shared`` next to the repository. Finished trainings are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from modalign.cli.console import quiet_libraries
from modalign.data.supervision import Sample
from modalign.files import write_atomically
from modalign.merging.config import MergeConfig
from modalign.merging.judging import Domain, Judged, judge
from modalign.merging.learned import learn
from modalign.merging.planning import Merge
from modalign.merging.writing import Recipe, write_merged
from modalign.models.saved import open_composed
from modalign.numbers import words
from modalign.numbers.pairs import differences, resamples_for
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.pages.markdown import table
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples

SHARED = Path(__file__).parents[2] / "shared"
BASE = SHARED / "models" / "stories260k"
TEXTS = SHARED / "data" / "text_domains"
DOMAINS = {"drama": "shakespeare.txt", "instructions": "alpaca.json", "web": "c4.jsonl"}
LENGTH, STEPS, BATCH, RATE = 192, 100, 6, 5e-4
DARE_SEEDS = (0, 1, 2)
MIXTURES = {
    "even": (1 / 3, 1 / 3, 1 / 3),
    "drama": (0.6, 0.2, 0.2),
    "instructions": (0.2, 0.6, 0.2),
    "web": (0.2, 0.2, 0.6),
    "no web": (0.5, 0.5, 0.0),
    "no drama": (0.0, 0.5, 0.5),
}
Parts = tuple[list[Sample], list[Sample], list[Sample]]  # train, validation, evaluation

# Name of a row -> fields of the merge.
MERGES: dict[str, dict[str, Any]] = {
    **{f"linear {share:g}": {"weight": [f"{share}"]} for share in (0.1, 0.3, 0.5, 0.7, 0.9)},
    **{
        f"task arithmetic {scale:g}": {"method": "task_arithmetic", "options": {"scale": scale}}
        for scale in (0.5, 0.7, 1.0)
    },
    **{
        f"ties {density:g}, scale {scale:g}": {
            "method": "ties",
            "options": {"density": density, "scale": scale},
        }
        for density, scale in ((0.5, 1.0), (0.8, 1.0), (0.5, 1.5))
    },
    **{
        f"dare_linear 0.5, draw {seed}": {
            "method": "dare_linear",
            "options": {"density": 0.5},
            "seed": seed,
        }
        for seed in DARE_SEEDS
    },
    "model_stock": {"method": "model_stock"},
}
GRID = [name for name in MERGES if name.startswith("linear")]
CHOSEN, LEARNED = "linear, chosen on validation", "learned"


def read(name: str, opened: Any) -> Parts:
    """Read a domain's windows: the last tenth judges, the tenth before it chooses."""
    source = TEXTS / DOMAINS[name]
    if source.suffix == ".json":
        source = as_texts(source)
    samples = read_samples(source, opened, length=LENGTH)
    tenth = len(samples) // 10
    return samples[: -2 * tenth], samples[-2 * tenth : -tenth], samples[-tenth:]


def as_texts(source: Path) -> Path:
    """Write instructions with their answers as plain texts."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    target = Path("build") / "merging" / f"{source.stem}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    keys = ("instruction", "input", "output")
    texts = ["\n".join(row[key] for key in keys if row[key]) for row in rows]
    write_atomically(target, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return target


def train(folder: Path, samples: Sequence[Sample], seed: int, steps: int = STEPS) -> Path:
    """Train the base further, unless that was done before."""
    if not (folder / "config.json").is_file():
        rates = LearningRates(llm=RATE)
        settings = TrainSettings(llm="full", batch_size=BATCH, learning_rates=rates, device="cpu")
        tuning = Tuning(open_composed(BASE), [Stage()], settings, samples, seed=seed)
        tuning.run(Budget("samples", steps * BATCH), folder.with_name(f"{folder.name}-run"))
        tuning.save(folder)
        shutil.rmtree(folder.with_name(f"{folder.name}-run"))
    return folder


def losses(folder: Path, domains: Mapping[str, Domain]) -> dict[str, Judged]:
    """Judge a model on the domains."""
    return judge(open_composed(folder), domains, torch.device("cpu"))


def written(merge: Merge, recipe: Recipe, place: Path) -> Path:
    """Write the merged model, replacing the one before it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write_merged(merge.alignment, recipe, place)
    return place


def one_seed(out: Path, seed: int) -> dict[str, dict[str, Judged]]:
    """Return model -> domain -> result for one seed, reading it if it was computed before."""
    file = out / f"seed-{seed}.json"
    if file.is_file():
        values = json.loads(file.read_text())
        return {m: {d: Judged(**v) for d, v in found.items()} for m, found in values.items()}
    opened = open_composed(BASE)
    names = ("drama", "instructions")
    parts = {name: read(name, opened) for name in names}
    validation = {name: Domain(name, each[1], True) for name, each in parts.items()}
    evaluation = {name: Domain(name, each[2], True) for name, each in parts.items()}
    place = out / f"seed-{seed}"
    folders = {name: train(place / name, parts[name][0], seed) for name in names}
    both = [sample for each in parts.values() for sample in each[0]]
    joint = {
        f"joint, {steps} steps": train(place / f"joint-{steps}", both, seed, steps)
        for steps in (STEPS, 2 * STEPS)
    }
    found = {"base": losses(BASE, evaluation)}
    found |= {f"parent {name}": losses(folder, evaluation) for name, folder in folders.items()}
    work, choice = place / "work", {}
    parents = {name: str(folder) for name, folder in folders.items()}
    for name, fields in MERGES.items():
        own = {"seed": seed, **fields, "base": str(BASE)}
        merge = Merge(MergeConfig(parents=parents, **own))
        folder = written(merge, merge.recipe, work)
        found[name] = losses(folder, evaluation)
        if name in GRID:
            choice[name] = np.mean([each.mean for each in losses(folder, validation).values()])
    found[CHOSEN] = found[min(choice, key=lambda name: choice[name])]
    config = MergeConfig(parents=parents, method=LEARNED, val={"given": "here"})
    merge = Merge(config)
    start = written(merge, merge.recipe, work)
    quiet: Callable[[str, int, int], None] = lambda name, done, total: None  # noqa: E731
    learnt = learn(
        merge.alignment, merge.recipe, start, validation, config.learning,
        seed=seed, device=torch.device("cpu"), progress=quiet,
    )  # fmt: skip
    found[LEARNED] = losses(written(merge, learnt.recipe(merge.recipe), work), evaluation)
    found |= {name: losses(folder, evaluation) for name, folder in joint.items()}
    shutil.rmtree(work)
    plain = {m: {d: v.model_dump() for d, v in each.items()} for m, each in found.items()}
    write_atomically(file, json.dumps(plain))
    return found


def show_table(out: Path, seeds: int) -> None:
    """Print losses over records and seeds, and which models differ from the chosen grid point."""
    runs = [one_seed(out, seed) for seed in range(seeds)]
    opened = open_composed(BASE)
    domains = {n: Domain(n, read(n, opened)[2], True) for n in ("drama", "instructions")}
    sizes = {name: len(domain.samples) for name, domain in domains.items()}
    whole = sum(sizes.values())
    groups = [f"{n}:{g}" for n, domain in domains.items() for g in domain.groups or ()]
    rows: dict[str, list[str]] = {name: [name] for name in runs[0]}
    means = {
        model: np.stack([
            np.concatenate([run[model][n].nll * whole / (len(sizes) * sizes[n]) for n in sizes])
            for run in runs
        ])
        for model in runs[0]
    }  # fmt: skip
    fixed = ("base",)
    for name, domain in domains.items():
        values = {m: np.stack([run[m][name].nll for run in runs]) for m in rows}
        values["base"] = values["base"][:1]
        for model, each in estimate_means(
            values, groups=domain.groups, fixed=fixed, unit="nats"
        ).items():
            rows[model].append(f"{each.value:.3f}")
    means["base"] = means["base"][:1]
    for model, each in estimate_means(means, groups=groups, fixed=fixed, unit="nats").items():
        rows[model].append(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})")
        rows[model].append(" ".join(f"{value:.3f}" for value in means[model].mean(1)))
    print(table(["model", *sizes, "mean (95 %)", "each seed"], list(rows.values())))
    counts = ", ".join(f"{n} windows of {name}" for name, n in sizes.items())
    print(f"\nnats per token; {counts}; {seeds} seeds.\n")
    gains = {name: -value for name, value in means.items()}
    drawn = hierarchical_bootstrap(
        gains, groups=groups, resamples=resamples_for(len(gains)), fixed=fixed
    )
    pairs = [(name, CHOSEN) for name in gains if name not in (*GRID, CHOSEN)]
    shown = [
        [each.first, f"{each.difference.value:+.3f} ({each.difference.low:+.3f} to {each.difference.high:+.3f})",
         words.p_value(each.p_holm), {"first": "better", "second": "worse"}.get(each.verdict, each.verdict)]
        for each in differences(drawn, pairs, unit="nats")
    ]  # fmt: skip
    print(table(["model", f"better than “{CHOSEN}” by", "p (Holm)", "verdict"], shown))


def show_mixture(out: Path, seeds: int) -> None:
    """Print Spearman's rank correlation of merged experts with real trainings, per target."""
    opened = open_composed(BASE)
    parts = {name: read(name, opened) for name in DOMAINS}
    evaluation = {name: Domain(name, each[2], True) for name, each in parts.items()}
    print(
        "| seed | "
        + " | ".join(DOMAINS)
        + " | mean of targets |\n|---|"
        + "---|" * (len(DOMAINS) + 1)
    )
    for seed in range(seeds):
        file = out / f"mixture-{seed}.json"
        if not file.is_file():
            write_atomically(
                file, json.dumps(one_mixture(out / f"seed-{seed}", parts, evaluation, seed))
            )
        found = json.loads(file.read_text())
        cells = [
            spearmanr(
                *([found[way][m][t] for m in MIXTURES] for way in ("merged", "trained"))
            ).statistic
            for t in DOMAINS
        ]
        means = [
            [np.mean(list(found[way][m].values())) for m in MIXTURES]
            for way in ("merged", "trained")
        ]
        cells.append(spearmanr(*means).statistic)
        print(f"| {seed} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    print(
        f"\n{len(MIXTURES)} mixtures. With six points, a rank correlation of .9 has a 95 % interval of about .1 "
        "to .99 (Fisher's z with Bonett and Wright's standard error)."
    )


def one_mixture(
    place: Path, parts: Mapping[str, Parts], evaluation: Mapping[str, Domain], seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return way -> mixture -> target -> loss, for experts merged by a mixture's weights and training on it."""
    experts = {name: str(train(place / name, parts[name][0], seed)) for name in parts}
    found: dict[str, dict[str, dict[str, float]]] = {"merged": {}, "trained": {}}
    for number, (name, shares) in enumerate(MIXTURES.items()):
        weight = ",".join(f"{share:.6f}" for share in shares)
        merge = Merge(MergeConfig(parents=experts, weight=[weight]))
        merged = losses(written(merge, merge.recipe, place / "work"), evaluation)
        mixed = mixture([each[0] for each in parts.values()], shares, seed)
        trained = losses(train(place / f"mixture-{number}", mixed, seed), evaluation)
        for way, judged in (("merged", merged), ("trained", trained)):
            found[way][name] = {target: each.mean for target, each in judged.items()}
    return found


def mixture(parts: Sequence[Sequence[Sample]], shares: Sequence[float], seed: int) -> list[Sample]:
    """Draw as many windows as a training reads, by shares."""
    rng = np.random.default_rng(seed)
    wanted = STEPS * BATCH
    drawn: list[Sample] = []
    for samples, share in zip(parts, shares, strict=True):
        count = min(round(share * wanted), len(samples))
        drawn += [samples[i] for i in rng.permutation(len(samples))[:count]]
    return [drawn[i] for i in rng.permutation(len(drawn))]


# ---------------------------------------------------------------------- speed


def random_models(place: Path) -> tuple[Path, Path]:
    """Make two random models of SmolLM2-135M's shape, with a tokenizer."""
    folders = (place / "first", place / "second")
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    for seed, folder in enumerate(folders):
        if not (folder / "model.safetensors").is_file():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(folder)
            AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folders


# A small process that starts another, since a process inherits the peak of the one that starts it.
TIMED = """
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode:
    sys.exit(done.stderr[-2000:])
print(json.dumps([time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20]))
"""


def measured(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and peak resident GiB of a process and those that it waits for."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", TIMED, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, cpu, peak = json.loads(done.stdout)
    return seconds, cpu, peak


MERGE_ALONE = """
import re, sys
from pathlib import Path
from modalign.merging.config import MergeConfig
from modalign.merging.planning import Merge
from modalign.merging.writing import Hashes, write_merged

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20

first, second, target, method, base = sys.argv[1:]
merge = Merge(MergeConfig(parents={"a": first, "b": second}, base=base or None, method=method))
Path(target).mkdir()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
before = resident("VmRSS")
write_merged(merge.alignment, merge.recipe, Path(target), hashes=Hashes())
print(resident("VmHWM") - before)
"""


def show_speed(out: Path, mergekit: Path, rounds: int) -> None:
    """Time both tools in turn on one merge."""
    first, second = (str(folder.resolve()) for folder in random_models(out / "speed"))
    rows: dict[str, list[tuple[float, float, float]]] = {}
    growth = {}
    for method in ("linear", "ties"):
        base = first if method == "ties" else ""
        file = out / "speed" / f"{method}.yaml"
        models = [
            {"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in (first, second)
        ]
        recipe = {"merge_method": method, "models": models, "dtype": "float32"}
        recipe |= {"base_model": base} if base else {}
        write_atomically(file, json.dumps(recipe))
        for _ in range(rounds):
            target = str(out / "speed" / "merged")
            shutil.rmtree(target, ignore_errors=True)
            ours = [
                sys.executable,
                "-m",
                "modalign",
                "merge",
                f"a={first}",
                f"b={second}",
                "-o",
                target,
            ]
            ours += ["--method", method, *(["--base", base] if base else [])]
            rows.setdefault(f"modalign merge, {method}", []).append(measured(ours, {}))
            shutil.rmtree(target)
            code = [sys.executable, "-c", MERGE_ALONE, first, second, target, method, base]
            done = subprocess.run(code, capture_output=True, text=True, check=True)
            growth[method] = float(done.stdout.split()[-1])
            shutil.rmtree(target)
            if mergekit.is_file():
                theirs = [str(mergekit.with_name("mergekit-yaml")), str(file), target, "--quiet"]
                rows.setdefault(f"mergekit, {method}", []).append(
                    measured(theirs, {"PYTHONPATH": ""})
                )
    shown = [
        [
            name,
            *(
                f"{np.median([each[i] for each in found]):.{digits}f}"
                for i, digits in ((0, 1), (1, 1), (2, 2))
            ),
        ]
        for name, found in rows.items()
    ]
    print(
        table(["merge of 2 x 135 M (float32)", "seconds", "CPU seconds", "peak memory, GiB"], shown)
    )
    shard = (Path(first) / "model.safetensors").stat().st_size / 2**30
    print(f"\nmedians of {rounds} rounds, in turn. The largest shard has {shard:.2f} GiB.")
    for method, grown in growth.items():
        print(f"{method}: the merge itself grows the process by {grown:.2f} GiB.")
    if not mergekit.is_file():
        print(f"mergekit was left out: there is no {mergekit} (make oracles)")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("table", "mixture", "speed"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/merging"))
    parser.add_argument("--mergekit", type=Path, default=Path("build/oracles/mergekit/bin/python"))
    given = parser.parse_args()
    quiet_libraries()
    if given.part != "speed" and not BASE.is_dir():
        raise SystemExit(f"{BASE} is not there: this part needs ../shared next to the repository")
    given.out.mkdir(parents=True, exist_ok=True)
    {
        "table": lambda: show_table(given.out, given.seeds),
        "mixture": lambda: show_mixture(given.out, given.seeds),
        "speed": lambda: show_speed(given.out, given.mergekit, given.rounds),
    }[given.part]()


if __name__ == "__main__":
    main()
