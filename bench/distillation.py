"""Is distillation worth its time? A small picture model taught by a larger one, on real handwritten digits.

The data are scikit-learn's 8 x 8 digits with four kinds of question. The teacher (424 k parameters besides the
tower) has seen 1,200 images, its student (24 k) sees 80 of them, both through one frozen tower. All schedules of
``modalign distill`` train the student with the same number of steps, and cross-entropy once more with the same
wall time, under several seeds: other 80 images, other initial weights. They are judged on 800 questions about 200
images never trained on.

    python -m bench.distillation [--seeds 4] [--first 0] [--out runs/distillation]

Settings were chosen on seeds 0 to 3; ``--first 10`` is a fresh run. An interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from modalign.cli.console import quiet_libraries
from modalign.compression.distillation.config import DistillConfig
from modalign.compression.distillation.distill import distill
from modalign.compression.distillation.results import Distillation
from modalign.files import new_folder
from modalign.models.compose import LanguageModel, compose, prepare_tokenizer
from modalign.models.encoders.image import load_image_encoder, plain_processor
from modalign.models.export import save_model
from modalign.models.saved import open_composed
from modalign.numbers.bootstrap import mean_of_few
from modalign.pages.markdown import table
from modalign.starter.language import build_tokenizer
from modalign.starter.scenes import WORDS, scans
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples

TEACHERS, STUDENTS, HELD_OUT = 1200, 80, 200  # images
TEACHER_STEPS, STUDENT_STEPS, BATCH = 5000, 400, 16
TEACHER = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4}
STUDENT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
RATES = LearningRates(connector=3e-3, llm=3e-3)
SCHEDULES = ("throughout", "llava_kd", "dpt_sft", "cross_entropy", "ce",
             "throughout-relation", "throughout-relation-kl_visual")  # fmt: skip


def questions(digit: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Ask four kinds of question: which digit, its parity, its order, and whether it is a given one."""
    other = int(rng.integers(10))
    asked = digit if rng.random() < 0.5 else other
    yes = {True: "yes", False: "no"}
    return [
        ("which digit is this?", WORDS[digit]),
        ("is the digit even?", yes[digit % 2 == 0]),
        (f"is the digit larger than {WORDS[other]}?", yes[digit > other]),
        (f"is this a {WORDS[asked]}?", yes[digit == asked]),
    ]


def write_rows(path: Path, images: np.ndarray, seed: int) -> Path:
    """Write all questions about the images with these numbers, and their pictures."""
    if path.exists():
        return path
    rng, rows = np.random.default_rng(seed), []
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    for number in images.tolist():
        picture = path.parent / "images" / f"{number}.png"
        Image.fromarray(scans()[0][number]).convert("RGB").save(picture)
        rows += [
            {"id": f"{number}-{kind}", "image": f"images/{number}.png", "question": q, "answer": a}
            for kind, (q, a) in enumerate(questions(int(scans()[1][number]), rng))
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pixels(images: np.ndarray) -> Tensor:
    """Return (n, 3, 8, 8) from -1 to 1."""
    values = torch.from_numpy(scans()[0][images].astype(np.float32) / 127.5 - 1)
    return values[:, None].expand(-1, 3, -1, -1).contiguous()


def build_tower(folder: Path, images: np.ndarray) -> None:
    """Pretrain a tower of three layers on the digits of the teacher's images; its features are then frozen."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=8,
        patch_size=2,
        vision_use_head=False,
    )
    tower, head = SiglipVisionModel(config), nn.Linear(32, 10)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=2e-3)
    labels = torch.from_numpy(scans()[1])
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows = rng.choice(images, 64)
        features = tower(pixel_values=pixels(rows)).last_hidden_state.mean(1)
        loss = nn.functional.cross_entropy(head(features), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with new_folder(folder) as made:
        tower.eval().save_pretrained(made)
        plain_processor(8).save_pretrained(made)


@torch.no_grad()
def linear_accuracy(folder: Path, train: np.ndarray, held: np.ndarray) -> float:
    """Measure how well a linear classifier reads the digit from the tower's mean feature."""
    tower = SiglipVisionModel.from_pretrained(folder).eval()
    parts = (tower(pixel_values=pixels(rows)).last_hidden_state.mean(1) for rows in (train, held))
    first, second = (features.numpy() for features in parts)
    found = LogisticRegression(max_iter=2000).fit(first, scans()[1][train])
    return float(found.score(second, scans()[1][held]))


def build_model(folder: Path, tower: Path, size: dict[str, int], seed: int) -> None:
    """Join a language model with random weights to the tower."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    prepare_tokenizer(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **size,
    )
    llm = LanguageModel("made here", LlamaForCausalLM(config), tokenizer)
    model, processor = compose(llm, load_image_encoder(str(tower), layer=-1), "mlp")
    save_model(model.eval(), processor, folder)


def settings() -> TrainSettings:
    """Return the settings that all trainings share."""
    return TrainSettings(llm="full", learning_rates=RATES, batch_size=BATCH, device="cpu")


def build_teacher(folder: Path, tower: Path, rows: Path) -> None:
    """Train the teacher on all its images."""
    start = folder.with_name("untrained")
    build_model(start, tower, TEACHER, 0)
    opened = open_composed(start)
    rates = LearningRates(connector=1e-3, llm=1e-3)
    own = settings().model_copy(update={"learning_rates": rates})
    tuning = Tuning(opened, [Stage()], own, read_samples(rows, opened))
    tuning.run(Budget("samples", TEACHER_STEPS * BATCH), folder.with_name("teacher-run"))
    tuning.save(folder)


def prepared(out: Path) -> tuple[Path, Path, np.ndarray, Path]:
    """Return tower, teacher, the images it saw, and the evaluation rows; made once."""
    order = np.random.default_rng(3).permutation(len(scans()[1]))
    seen, held = order[:TEACHERS], order[-HELD_OUT:]
    out.mkdir(parents=True, exist_ok=True)
    tower, teacher = out / "tower", out / "teacher"
    if not tower.exists():
        build_tower(tower, seen)
    rows = write_rows(out / "teacher.jsonl", seen, 1)
    if not teacher.exists():
        build_teacher(teacher, tower, rows)
    print(
        f"the tower's features: {linear_accuracy(tower, seen, held):.1%} by a linear classifier\n"
    )
    return tower, teacher, seen, write_rows(out / "eval.jsonl", held, 2)


def one_seed(out: Path, seed: int, parts: tuple[Path, Path, np.ndarray, Path]) -> Distillation:
    """Distil into one student by every schedule."""
    tower, teacher, seen, held = parts
    student = out / f"student-{seed}"
    if not student.exists():
        build_model(student, tower, STUDENT, 100 + seed)
    chosen = np.random.default_rng(1000 + seed).choice(seen, STUDENTS, replace=False)
    config = DistillConfig(
        teacher=str(teacher),
        student=str(student),
        data=str(write_rows(out / f"train-{seed}.jsonl", chosen, 10 + seed)),
        evaluation=str(held),
        schedule=SCHEDULES[0],
        against=list(SCHEDULES[1:]),
        budget=f"{STUDENT_STEPS * BATCH}samples",
        training=settings(),
        seed=seed,
    )
    return distill(config, out / f"seed-{seed}", resume=True)


def printed(found: list[Distillation]) -> None:
    """Print means and deviations over seeds, and how much worse than the first schedule each other one is."""
    figures: dict[str, dict[str, list[float]]] = {}
    for each in found:
        for row in each.rows:
            held = figures.setdefault(row.title, {})
            known: dict[str, Any] = {
                "nll": row.nll, "accuracy": row.accuracy, "moved": row.moved, "gained": row.gained,
            }  # fmt: skip
            for name, estimate in known.items():
                held.setdefault(name, []).append(estimate.value)
            held.setdefault("seconds", []).append(row.seconds or 0.0)
    titles = list(figures)
    main = figures[titles[2]]["nll"]
    rows = []
    for place, title in enumerate(titles):
        own = figures[title]
        worse = "" if place <= 2 else _gap(np.array(own["nll"]) - np.array(main))
        rows.append([
            title, _spread(own["accuracy"]), _spread(own["nll"]), worse, _spread(own["moved"]),
            _spread(own["gained"]), f"{np.mean(own['seconds']):.1f}",
        ])  # fmt: skip
    headings = ("schedule", "accuracy (sd)", "answer NLL (sd)", "worse than the first by (95 %)",
                "moved by blank pictures", "gained by pictures", "seconds")  # fmt: skip
    print(table(headings, rows))


def _spread(values: list[float]) -> str:
    spread = f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _gap(values: np.ndarray) -> str:
    found = mean_of_few(values)
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    asked = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    torch.set_num_threads(1)
    parts = prepared(asked.out)
    seeds = range(asked.first, asked.first + asked.seeds)
    printed([one_seed(asked.out, seed, parts) for seed in seeds])


if __name__ == "__main__":
    main()
