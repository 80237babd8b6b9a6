"""Can a language model read a table? Measured on scikit-learn's breast cancer and wine, as questions.

A row of the table is the medium, the question asks for the class, the answer is its name. The language
model is tuned with its table connector (`modalign train`), and answers the test rows by generating
(`modalign eval`). The oracle is logistic regression on standardised columns, fitted on all rows except the
test rows, including those that the training was validated on.

Rows are split at random within each class: 63 % training, 7 % validation, 30 % test, once per split.

    python -m bench.tables --llm ../shared/models/stories260k [--encoder none] [--splits 3] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modalign.evaluation.passes import BLANK

ALLOWED = 0.03  # how far accuracy may be below logistic regression
TRAINING = {
    "llm": "full",
    "learning_rates": {"connector": 3e-3, "llm": 5e-4, "encoder": 3e-3},
    "batch_size": 16,
}


@dataclass(frozen=True)
class Task:
    """A data set as questions, and how long to train on it."""

    name: str
    question: str
    classes: tuple[str, ...]
    budget: str


TASKS = (
    Task("breast cancer", "is it malignant or benign?", ("malignant", "benign"), "4000samples"),
    Task("wine", "from which cultivar is it?", ("first", "second", "third"), "3000samples"),
)


@dataclass
class Result:
    """Accuracy on one split's test rows."""

    task: str
    split: int
    rows: int
    modalign: float
    blank: float | None
    oracle: float
    majority: float
    seconds: float


def rows_of(task: Task) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return columns (n, C), class numbers (n,) and the names of the columns."""
    loaded = load_wine() if task.name == "wine" else load_breast_cancer()
    return loaded.data, loaded.target, [str(name) for name in loaded.feature_names]


def write_rows(
    path: Path, task: Task, names: Sequence[str], data: np.ndarray, y: np.ndarray
) -> Path:
    """Write records with the table in the row."""
    with path.open("w") as file:
        for values, label in zip(data.tolist(), y, strict=True):
            table = dict(zip(names, values, strict=True))
            record = {
                "table": table,
                "question": task.question,
                "answer": task.classes[label],
                "options": list(task.classes),
            }
            file.write(json.dumps(record) + "\n")
    return path


def run(task: Task, split: int, llm: Path, encoder: str, method: str, out: Path) -> Result:
    """Train, evaluate and compare with the oracle on one split."""
    data, y, names = rows_of(task)
    seen, test, seen_y, test_y = train_test_split(
        data, y, test_size=0.3, stratify=y, random_state=split
    )
    train, val, train_y, val_y = train_test_split(
        seen, seen_y, test_size=0.1, stratify=seen_y, random_state=split
    )
    out.mkdir(parents=True, exist_ok=True)
    files = {
        name: str(write_rows(out.resolve() / f"{name}.jsonl", task, names, *part))
        for name, part in {
            "train": (train, train_y),
            "val": (val, val_y),
            "test": (test, test_y),
        }.items()
    }
    config = {
        "parts": {"llm": str(llm.resolve()), "encoder": {"table": encoder}},
        "data": {"train": files["train"], "val": files["val"]},
        "training": TRAINING,
        "budget": task.budget,
    }
    (out / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    start = time.monotonic()
    modalign(
        *("train", str(out / "config.yaml"), "--method", method, "--seed", str(split)),
        *("--factor", "1", "--out", str(out / "run"), "--json"),
    )
    found = modalign("eval", str(out / "run" / "model"), files["test"], "--json")["overall"]
    seconds = time.monotonic() - start
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return Result(
        task.name,
        split,
        len(test_y),
        found["measures"]["accuracy"]["value"],
        found["references"][BLANK]["accuracy"]["value"],
        float(oracle.fit(seen, seen_y).score(test, test_y)),
        float(np.bincount(test_y).max() / len(test_y)),
        seconds,
    )


def modalign(*arguments: str) -> dict:
    """Run a verb of the command line; return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "modalign", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def table(results: Sequence[Result]) -> str:
    """Tabulate every split, and the means over them with the verdict."""
    lines = [
        "| table | split | test rows | modalign | logistic regression | majority | all missing | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(result.task for result in results):
        own = [result for result in results if result.task == task]
        for r in own:
            blank = "" if r.blank is None else f"{r.blank:.1%}"
            lines.append(
                f"| {task} | {r.split} | {r.rows} | {r.modalign:.1%} | {r.oracle:.1%} | "
                f"{r.majority:.1%} | {blank} | {r.seconds:.0f} |"
            )
        ours, oracle = (
            float(np.mean([getattr(r, key) for r in own])) for key in ("modalign", "oracle")
        )
        verdict = "met" if ours >= oracle - ALLOWED else "not met"
        lines.append(
            f"| {task} | mean | | {ours:.1%} | {oracle:.1%} | | | at most 3 points less: {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--encoder", default="none", help="none or columns")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        results = []
        for task in TASKS:
            for split in range(1, given.splits + 1):
                place = out / f"{task.name.replace(' ', '_')}-{split}"
                results.append(run(task, split, given.llm, given.encoder, given.method, place))
                print(results[-1], file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
