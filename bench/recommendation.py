"""Is the recommended method the right one? Measured on small real tasks.

Nine of the thirteen tasks were not used to choose any setting. Rates and budgets of other benches were chosen on
nlvr, spoken_digits, breast cancer and wine, so those four flatter the result.

Each task has a pilot, ``modalign compare`` of six methods at a budget b, which recommends one; then the truth, the
same methods at 8 b with three trainings each. It prints how often the recommendation is right (the best, or within
one standard error of it) and its regret in points of accuracy, also for ``--plan-for 8b``, and for four baselines:
always ``mlp``, the fewest trainable parameters, the best validation accuracy of the pilot, and a random method.

    python -m bench.recommendation [--tasks wine,digits] [--out runs/recommendation]

It takes hours on two cores; every training is kept, and an interrupted run continues. Data are in
``../shared/data`` and scikit-learn; missing data are left out, with a message. The language model is
``../shared/models/stories260k``, tuned in every method.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from modalign.comparison.results import Comparison
from modalign.numbers.bootstrap import mean_of_few
from modalign.pages.markdown import table

SHARED = Path(__file__).parents[2] / "shared"
DATA = SHARED / "data"
GRID = ("linear", "mlp", "avgpool_mlp", "pixel_shuffle_mlp", "resampler", "gated_cross_attention")
SETS = ("linear", "mlp", "clipcap_lowrank", "resampler", "gated_cross_attention", "llama_adapter")
LARGER = 8
SIDES = (("eval", 25), ("val", 40), ("train", 100))  # up to which of a hundred groups
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SETTINGS = ("parts.image_size=64", "parts.patch_size=8", "training.batch_size=16",
            "training.learning_rates.connector=1e-3", "training.learning_rates.llm=5e-4")  # fmt: skip

Row = dict[str, Any]
Rows = Callable[[Path], Iterator[Row]]


@dataclass(frozen=True)
class Task:
    """A task and how its records are made.

    Attributes:
        modality: of its media.
        rows: a folder for files that must be written -> records, with the ``group`` that stays on one side.
        budget: b, samples of the pilot.
        needs: folder of the data; None if scikit-learn has them.
        encoder: of the modality.
    """

    modality: str
    rows: Rows
    budget: int = 2000
    needs: str | None = None
    encoder: str = "none"


def pictures(out: Path) -> Iterator[Row]:
    """Yield scikit-learn's digits, enlarged to 64 x 64."""
    loaded = load_digits()
    for number, (pixels, digit) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        path = out / "pictures" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((64, 64)).save(path)
        yield _asked("image", str(path), "which digit is this?", DIGITS[digit], str(number))


def shapes(_: Path) -> Iterator[Row]:
    """Yield easy-VQA's questions about drawn shapes; those about one picture stay together."""
    for row in _json("easy_vqa/questions.json"):
        path = str((DATA / "easy_vqa" / row["image"]).resolve())
        yield _asked("image", path, row["question"], row["answer"], row["image"])


def groceries(_: Path) -> Iterator[Row]:
    """Ask what kind of product a shop photograph shows."""
    kinds = {item["item_id"]: item["category"].lower() for item in _json("grocery/items.json")}
    for row in _json("grocery/photos.json"):
        path = str((DATA / "grocery" / row["image"]).resolve())
        yield _asked(
            "image", path, "what kind of product is it?", kinds[row["item_id"]], row["image"]
        )


def flags(_: Path) -> Iterator[Row]:
    """Ask whether a tenth of a flag or more is red."""
    for row in _json("flags/flags.json"):
        path = (DATA / "flags" / row["image"]).resolve()
        red, green, blue = np.asarray(
            Image.open(path).convert("RGBA").convert("RGB"), dtype=int
        ).transpose(2, 0, 1)
        share = float(((red > 140) & (green < 90) & (blue < 90)).mean())
        answer = "yes" if share >= 0.1 else "no"
        yield _asked("image", str(path), "is there red in this flag?", answer, row["image"])


def photographs(_: Path) -> Iterator[Row]:
    """Ask whether a photograph shows a person."""
    for row in _json("coco_photos/photos.json"):
        path = str((DATA / "coco_photos" / row["image"]).resolve())
        seen = "yes" if "person" in row["objects"] else "no"
        yield _asked("image", path, "is there a person?", seen, row["image"])


def sentences(_: Path) -> Iterator[Row]:
    """Ask whether NLVR's sentence is true of the picture; sentences stay together."""
    for row in _json("nlvr/nlvr.json"):
        path, number = str((DATA / "nlvr" / row["image"]).resolve()), row["image"].split("-")[1]
        question = f"{row['sentence'].strip().rstrip('.')}. true or false?"
        yield _asked("image", path, question, row["label"], number)


def recordings(_: Path) -> Iterator[Row]:
    """Yield recordings of spoken digits."""
    for path in sorted((DATA / "spoken_digits").glob("*.wav")):
        digit = DIGITS[int(path.name[0])]
        yield _asked("audio", str(path.resolve()), "which digit is this?", digit, path.stem)


def motion(_: Path) -> Iterator[Row]:
    """Ask what a person with a phone in the pocket is doing; stretches of one activity stay together."""
    classes = json.loads((DATA / "motion" / "classes.json").read_text(encoding="utf-8"))["classes"]
    found = load_file(DATA / "motion" / "windows.safetensors")
    both = np.concatenate([found["accelerometer"], found["gyroscope"]], axis=1)
    for values, label, segment in zip(both, found["label"], found["segment"], strict=True):
        answer = classes[label].lower().replace("_", " ")
        yield _asked("series", values.T.tolist(), "what does this person do?", answer, f"{segment}")


def archive(name: str) -> Rows:
    """Make the reader of a set of labelled series, training and test parts together."""

    def rows(_: Path) -> Iterator[Row]:
        classes = next(
            each["classes"] for each in _json("time_series/sets.json") if each["name"] == name
        )
        found = load_file(DATA / "time_series" / f"{name}.safetensors")
        for part in ("train", "test"):
            pairs = zip(found[f"{part}_series"], found[f"{part}_label"], strict=True)
            for number, (values, label) in enumerate(pairs):
                group = f"{part}-{number}"
                yield _asked(
                    "series", values.T.tolist(), "which kind?", classes[label].lower(), group
                )

    return rows


def columns(load: Callable[[], Any], question: str, classes: Sequence[str]) -> Rows:
    """Make the reader of one of scikit-learn's tables, each row a medium."""

    def rows(_: Path) -> Iterator[Row]:
        loaded = load()
        names = [str(name) for name in loaded.feature_names]
        for number, (values, label) in enumerate(
            zip(loaded.data.tolist(), loaded.target, strict=True)
        ):
            medium = dict(zip(names, values, strict=True))
            yield _asked("table", medium, question, classes[label], str(number))

    return rows


TASKS = {
    "digits": Task("image", pictures),
    "easy_vqa": Task("image", shapes, 4000, "easy_vqa"),
    "grocery": Task("image", groceries, needs="grocery"),
    "flags": Task("image", flags, 1000, "flags"),
    "coco_photos": Task("image", photographs, 1000, "coco_photos"),
    "nlvr": Task("image", sentences, needs="nlvr"),
    "spoken_digits": Task("audio", recordings, needs="spoken_digits", encoder="conv"),
    "motion": Task("series", motion, needs="motion"),
    "BasicMotions": Task("series", archive("BasicMotions"), 1000, "time_series"),
    "GunPoint": Task("series", archive("GunPoint"), 1000, "time_series"),
    "ItalyPowerDemand": Task("series", archive("ItalyPowerDemand"), 1000, "time_series"),
    "breast cancer": Task(
        "table",
        columns(load_breast_cancer, "is it malignant or benign?", ("malignant", "benign")),
        1000,
    ),
    "wine": Task(
        "table",
        columns(load_wine, "from which cultivar is it?", ("first", "second", "third")),
        1000,
    ),
}


def _json(name: str) -> list[Row]:
    found: list[Row] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return found


def _asked(modality: str, medium: object, question: str, answer: str, group: str) -> Row:
    return {
        modality: medium,
        "question": question,
        "answer": answer,
        "skill": "task",
        "group": group,
    }


def write_data(out: Path, task: Task) -> None:
    """Split the records by a hash of their group: about 60, 15 and 25 in a hundred."""
    sides: dict[str, list[Row]] = {side: [] for side, _ in SIDES}
    for row in task.rows(out):
        place = int(hashlib.sha256(row["group"].encode()).hexdigest(), 16) % 100
        sides[next(side for side, below in SIDES if place < below)].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        lines = "".join(
            json.dumps({"id": f"{side}-{n}", **row}) + "\n" for n, row in enumerate(rows)
        )
        (out / f"{side}.jsonl").write_text(lines, encoding="utf-8")


def compared(out: Path, name: str, task: Task, budget: int, *more: str) -> Comparison:
    """Run a comparison, or continue it."""
    folder = out / name
    methods = GRID if task.modality == "image" else SETS
    command = [sys.executable, "-m", "modalign", "compare", "--resume", "--train-llm", "full"]
    command += ["--llm", str((SHARED / "models" / "stories260k").resolve())]
    command += ["--encoder", f"{task.modality}={task.encoder}", "--methods", ",".join(methods)]
    for side, _ in SIDES:
        command += [f"--{side}", str((out / f"{side}.jsonl").resolve())]
    for setting in SETTINGS:
        command += ["--set", setting]
    command += ["--budget", f"{budget}samples", "--out", str(folder), *more]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"stopped: {' '.join(command)}")
    return Comparison.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Judged:
    """How a choice turned out at 8 b.

    Attributes:
        regret: points below the best method.
        right: it is the best, or within one standard error of it.
    """

    regret: float
    right: bool


def judged(truth: Comparison, method: str | None) -> Judged | None:
    """Judge a choice by what its method reached; None if nothing was chosen."""
    reached = {each.name: each.accuracy for each in truth.methods if each.accuracy is not None}
    if method is None or method not in reached:
        return None
    best = max(reached, key=lambda name: reached[name])
    gap = reached[best] - reached[method]
    pair = next((p for p in truth.differences if {p.first, p.second} == {best, method}), None)
    error = 0.0 if pair is None else (pair.difference.high - pair.difference.low) / 2 / 1.96
    return Judged(100 * gap, gap <= error)


def choices(pilot: Comparison) -> dict[str, list[str | None]]:
    """Return what each rule would choose after the pilot; several equally likely methods for a random one."""
    finished = [method for method in pilot.methods if method.status == "ok"]
    names = [method.name for method in finished]
    return {
        "recommended": [pilot.recommendation.method if pilot.recommendation else None],
        "planned for 8 b": [pilot.plan.method if pilot.plan else None],
        "always mlp": ["mlp"],
        "fewest parameters": [min(finished, key=lambda m: m.trainable_parameters or 0).name],
        "best on validation": [max(finished, key=lambda m: m.val_accuracy or 0.0).name],
        "at random": list(names),
    }


def tables(found: Mapping[str, tuple[Comparison, Comparison]]) -> str:
    """Write Markdown tables: a row per task, then a row per way of choosing."""
    rows, scores = [], {}
    for task, (pilot, truth) in found.items():
        chosen = choices(pilot)
        for way, methods in chosen.items():
            each = [result for method in methods if (result := judged(truth, method)) is not None]
            if each:
                right = float(np.mean([one.right for one in each]))
                regret = float(np.mean([one.regret for one in each]))
                scores.setdefault(way, []).append((right, regret))
        best = max(truth.methods, key=lambda method: method.accuracy or 0.0)
        own = judged(truth, chosen["recommended"][0])
        sure = pilot.recommendation.confidence if pilot.recommendation else None
        rows.append(
            [
                task,
                chosen["recommended"][0] or "none",
                "" if sure is None else f"{sure:.0%}",
                chosen["planned for 8 b"][0] or "cannot tell",
                f"{best.name} ({best.accuracy or 0.0:.1%})",
                "" if own is None else f"{own.regret:.1f}",
                "" if own is None else ("yes" if own.right else "no"),
            ]
        )
    headings = [
        "task",
        "recommended at b",
        "sure",
        "planned for 8 b",
        "best at 8 b",
        "regret",
        "right",
    ]
    summary = []
    for way, pairs in scores.items():
        rights, regrets = zip(*pairs, strict=True)
        mean = mean_of_few(regrets) if len(regrets) > 1 else None
        ends = "" if mean is None else f" ({mean.low:.1f} to {mean.high:.1f})"
        told = [way, f"{sum(rights):.1f} of {len(pairs)}", f"{np.mean(regrets):.1f}{ends}"]
        summary.append(told)
    return (
        f"{table(headings, rows)}\n\n{table(['choice', 'right', 'regret, points (95 %)'], summary)}"
    )


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, default=Path("runs/recommendation"))
    parser.add_argument("--budget", type=int, help="b, in place of the task's own")
    given = parser.parse_args()
    found = {}
    for name in given.tasks.split(","):
        task = TASKS[name]
        if task.needs and not (DATA / task.needs).is_dir():
            print(f"left out, {DATA / task.needs} is not there: {name}", file=sys.stderr)
            continue
        out = given.out / name.replace(" ", "_")
        write_data(out, task)
        budget = given.budget or task.budget
        plan = ("--plan-for", f"{LARGER * budget}samples")
        pilot = compared(out, "pilot", task, budget, *plan)
        truth = compared(out, "truth", task, LARGER * budget, "--seeds", "3")
        found[name] = (pilot, truth)
        print(f"{name}: done", file=sys.stderr)
    print(tables(found))


if __name__ == "__main__":
    main()
