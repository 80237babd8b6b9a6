"""The text suite against lm-evaluation-harness on the same items, log-likelihood by log-likelihood.

    python -m bench.harness.suites MODEL DATA --python build/harness/lm-eval-hf/bin/python [--limit 50]

The harness runs its own task definitions (prompts, options and all) over the same local rows; every option's
log-likelihood and every passage's must be equal to 1e-4. The exit code is 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.equality import TOLERANCE
from bench.harness.tools import run
from modalign.evaluation.suites.asking import Asked
from modalign.evaluation.suites.finding import find_parts
from modalign.evaluation.suites.parts import Part, Question
from modalign.models.open import open_model

TASKS = {
    "truthfulqa mc1": "truthfulqa_mc1",
    "truthfulqa mc2": "truthfulqa_mc2",
    "ethics commonsense": "ethics_cm",
    "ethics deontology": "ethics_deontology",
    "ethics justice": "ethics_justice",
    "ethics virtue": "ethics_virtue",
    "ethics utilitarianism": "ethics_utilitarianism",
}
SCRIPT = Path(__file__).parent / "lm_suites.py"


@dataclass(frozen=True)
class Equal:
    """How a part compares in both tools.

    Attributes:
        part: its name.
        items, values: how many items, and how many log-likelihoods.
        prompts: number of items whose prompts and options are the same texts.
        largest: largest difference of two log-likelihoods, in nats.
    """

    part: str
    items: int
    values: int
    prompts: int
    largest: float

    @property
    def holds(self) -> bool:
        """Whether texts are the same and no log-likelihood differs by more than the tolerance."""
        return self.prompts == self.items and self.largest <= TOLERANCE


def rows_of(part: Part) -> list[dict[str, Any]]:
    """Return a part's items as rows of the data set that the harness's task expects."""
    return [_row(part.name, item) for item in part.items]


def _row(name: str, item: Question) -> dict[str, Any]:
    if name.startswith("truthfulqa"):
        targets = {"choices": list(item.options), "labels": [int(right) for right in item.right]}
        return {"question": item.asked, f"{name[-3:]}_targets": targets}
    label = item.right.index(True)
    if name == "ethics commonsense":
        return {"label": label, "input": item.asked.removesuffix("\nQuestion: Is this wrong?")}
    if name == "ethics virtue":
        text, _, trait = item.asked.removeprefix("Sentence: ").partition("\nQuestion: ")
        return {"label": label, "scenario": text, "trait": trait.split('"')[1]}
    if name == "ethics utilitarianism":
        first, _, rest = item.asked.removeprefix("Scenario 1: ").partition("\nScenario 2: ")
        second = rest.partition("\nQuestion: ")[0]
        better, worse = (first, second) if label == 1 else (second, first)
        return {"activity": better, "baseline": worse}
    said = item.asked.partition('to say? "')[2].removesuffix('"')
    # Deontology's task joins two columns by a space.
    first, _, rest = said.partition(" ")
    return {"label": label, "scenario": said} if name == "ethics justice" else {
        "label": label, "scenario": first, "excuse": rest
    }  # fmt: skip


def measure(model: Path, data: Path, python: Path, *, limit: int | None, work: Path) -> list[Equal]:
    """Run both tools and compare them."""
    parts, _ = find_parts(data, ("truthfulqa", "ethics", "domains"), shots=0, limit=limit)
    loaded, reader = open_model(model, device="cpu")
    asked = Asked(loaded.float(), reader)
    ours: dict[str, list[Any]] = {}
    for part in parts:
        answers = asked.answers(part)
        places = [n for n, answer in enumerate(answers) if answer is not None]
        ours[part.name] = [answers[n] for n in places]
        part.items = [part.items[n] for n in places]
    job: dict[str, Any] = {"model": str(model.absolute()), "tasks": {}, "texts": []}
    for part in parts:
        if part.name in TASKS:
            file = work / f"{TASKS[part.name]}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(part)))
            job["tasks"][TASKS[part.name]] = str(file.absolute())
        else:
            job["texts"] += [item.text for item in part.items]
    (work / "job.json").write_text(json.dumps(job))
    run([python, SCRIPT, work / "job.json"], work / "lm_eval.log")
    found = json.loads((work / "found.json").read_text())
    texts = iter(found["texts"])
    return [
        _options(part, ours[part.name], found["options"][TASKS[part.name]])
        if part.name in TASKS
        else _texts(part, ours[part.name], [next(texts) for _ in part.items])
        for part in parts
    ]


def _options(part: Part, ours: Sequence[Any], theirs: Sequence[dict[str, Any]]) -> Equal:
    same, gaps = 0, []
    ordered = sorted(theirs, key=lambda sample: sample["number"])
    for item, own, other in zip(part.items, ours, ordered, strict=True):
        texts = [[prompt, option] for prompt, option, _ in other["pairs"]]
        same += texts == [[item.prompt, f" {option}"] for option in item.options]
        gaps += [
            abs(mine - value)
            for mine, (_, _, value) in zip(own["sums"], other["pairs"], strict=True)
        ]
    return Equal(part.name, len(part.items), len(gaps), same, max(gaps))


def _texts(part: Part, ours: Sequence[Any], theirs: Sequence[float]) -> Equal:
    gaps = [abs(-nats - total) for (nats, _), total in zip(ours, theirs, strict=True)]
    return Equal(part.name, len(gaps), len(gaps), len(gaps), max(gaps))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per part; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--python", type=Path, required=True, help="of an environment with lm_eval and torch"
    )
    parser.add_argument("--limit", type=int, default=None)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            given.model, given.data, given.python.absolute(), limit=given.limit, work=Path(folder)
        )
    print(f"{'part':24} {'items':>6} {'values':>7} {'same texts':>11} {'largest difference':>19}")
    for each in found:
        print(
            f"{each.part:24} {each.items:6} {each.values:7} {each.prompts:11} {each.largest:19.1e}"
        )
    return int(not all(each.holds for each in found))


if __name__ == "__main__":
    sys.exit(main())
