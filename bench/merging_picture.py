"""A picture model merged with a text fine-tune of its language model: what each share costs and gains.

stories260k is joined with a small tower and trained on questions about scikit-learn's digits (`bench.distillation`
has the tower and the questions); the plain language model is stories260k trained further on Shakespeare, as
`bench.merging table` trains it. They are merged by growing shares of the text model, with tower and connector from
the picture model, and compared with both parents: on 800 questions about 200 pictures never trained on, and on the
last tenth of Shakespeare. The share is chosen on questions about 100 other pictures and the tenth before it.

    python -m bench.merging_picture [--seeds 3] [--out runs/merging]

Finished trainings are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.distillation import HELD_OUT, TEACHERS, build_tower, write_rows
from bench.merging import BASE, losses, read, train, written
from modalign.cli.console import quiet_libraries
from modalign.merging.config import MergeConfig
from modalign.merging.judging import Domain, Judged
from modalign.merging.planning import Merge
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export import save_model
from modalign.models.saved import open_composed
from modalign.numbers import words
from modalign.numbers.pairs import differences, resamples_for
from modalign.numbers.trainings import estimate_means, hierarchical_bootstrap
from modalign.pages.markdown import table
from modalign.starter.scenes import scans
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the text model
VALIDATION = 100  # pictures
STEPS, BATCH = 1500, 16
RATES = LearningRates(connector=2e-3, llm=1e-3)
PICTURE, TEXT = "picture model", "text model"


def build(folder: Path, tower: Path, rows: Path, seed: int) -> Path:
    """Join stories260k with the tower and train both sides on the questions, unless that was done before."""
    if folder.exists():
        return folder
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prepare_tokenizer(tokenizer)
    llm = LanguageModel(str(BASE), AutoModelForCausalLM.from_pretrained(BASE), tokenizer)
    model, processor = compose(llm, load_image_encoder(str(tower), layer=-1), "mlp")
    start = folder.with_name(f"{folder.name}-untrained")
    save_model(model.eval(), processor, start)
    opened = open_composed(start)
    own = TrainSettings(llm="full", learning_rates=RATES, batch_size=BATCH, device="cpu")
    stages = [Stage(name="connector", llm="frozen", share=0.2), Stage(name="all", share=0.8)]
    tuning = Tuning(opened, stages, own, read_samples(rows, opened), seed=seed)
    tuning.run(Budget("samples", STEPS * BATCH), folder.with_name(f"{folder.name}-run"))
    tuning.save(folder)
    return folder


def one_seed(out: Path, seed: int) -> dict[str, dict[str, dict[str, Judged]]]:
    """Return model -> part (validation, evaluation) -> domain -> result; the text model has none on pictures."""
    order = np.random.default_rng(3).permutation(len(scans()[1]))
    seen, held = order[:TEACHERS], order[-HELD_OUT:]
    chosen = order[TEACHERS : TEACHERS + VALIDATION]
    tower, place = out / "tower", out / f"seed-{seed}"
    if not tower.exists():
        build_tower(tower, seen)
    rows = [
        write_rows(out / f"digits-{name}.jsonl", images, number)
        for number, (name, images) in enumerate(
            (("train", seen), ("validation", chosen), ("evaluation", held)), 1
        )
    ]
    base = open_composed(BASE)
    texts = read("drama", base)
    parents = {
        "picture": build(place / "picture", tower, rows[0], seed),
        "text": train(place / "drama", texts[0], seed),
    }
    opened = open_composed(parents["picture"])
    domains = {
        part: {
            "questions": Domain("questions", read_samples(file, opened), False),
            "drama": Domain("drama", text, True),
        }
        for part, file, text in (
            ("validation", rows[1], texts[1]),
            ("evaluation", rows[2], texts[2]),
        )
    }
    found = {
        PICTURE: {part: losses(parents["picture"], each) for part, each in domains.items()},
        TEXT: {
            part: losses(parents["text"], {"drama": each["drama"]})
            for part, each in domains.items()
        },
    }
    given = {name: str(folder) for name, folder in parents.items()}
    for share in SHARES:
        merge = Merge(MergeConfig(parents=given, weight=[f"{share}"], assign=["picture"]))
        folder = written(merge, merge.recipe, place / "work")
        found[f"{share:g} of the text model"] = {
            part: losses(folder, each) for part, each in domains.items()
        }
    return found


def show(out: Path, seeds: int) -> None:
    """Print right answers and losses by share, over records and seeds, and what the chosen merge is worth."""
    runs = [one_seed(out, seed) for seed in range(seeds)]
    merges = [name for name in runs[0] if name not in (PICTURE, TEXT)]
    right = {
        name: np.stack([run[name]["evaluation"]["questions"].correct for run in runs]).astype(float)
        for name in (PICTURE, *merges)
    }
    text = {
        name: np.stack([run[name]["evaluation"]["drama"].nll for run in runs]) for name in runs[0]
    }
    shown = {
        name: f"{each.value:.1%} ({each.low:.1%} to {each.high:.1%})"
        for name, each in estimate_means(right).items()
    }
    losses_ = {
        name: f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})"
        for name, each in estimate_means(text, unit="nats").items()
    }
    chosen = [chosen_share(run, merges) for run in runs]
    rows = [
        [name, shown.get(name, ""), losses_[name], ", ".join(str(i) for i, n in enumerate(chosen) if n == name)]
        for name in (PICTURE, *merges, TEXT)
    ]  # fmt: skip
    print(table(["model", "right answers", "drama, nats per token", "chosen under seed"], rows))
    for what, values, sign, unit in (
        ("right answers", right, 1, "share"),
        ("drama, nats per token", text, -1, "nats"),
    ):
        gains = {
            PICTURE: sign * values[PICTURE],
            "chosen": sign * np.stack([values[name][seed] for seed, name in enumerate(chosen)]),
        }
        drawn = hierarchical_bootstrap(gains, groups=None, resamples=resamples_for(1))
        (found,) = differences(drawn, [("chosen", PICTURE)], unit=unit)
        print(
            f"\n{what}: chosen merge against picture model {words.interval(found.difference)}, "
            "positive is better"
        )
    print(
        f"\ntrainings of each parent: {seeds}; {right[PICTURE].shape[1]} questions, "
        f"{text[PICTURE].shape[1]} windows."
    )


def chosen_share(run: dict[str, dict[str, dict[str, Judged]]], merges: list[str]) -> str:
    """Return the merge with the lowest drama loss on validation among those within a point of the parent."""

    def accuracy(name: str) -> float:
        return float(np.mean(run[name]["validation"]["questions"].correct))

    near = [name for name in merges if accuracy(name) >= accuracy(PICTURE) - 0.01]
    return min(near or merges[:1], key=lambda name: run[name]["validation"]["drama"].mean)


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/merging"))
    given = parser.parse_args()
    quiet_libraries()
    if not BASE.is_dir():
        raise SystemExit(f"{BASE} is not there: this needs ../shared next to the repository")
    given.out.mkdir(parents=True, exist_ok=True)
    show(given.out, given.seeds)


if __name__ == "__main__":
    main()
