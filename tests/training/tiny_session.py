"""Sessions over tiny parts, and children that train them and may be killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import tiny
from kills import in_child
from modalign.data.supervision import Sample, tokenise
from modalign.models.compose import prepare_tokenizer
from modalign.training.budget import Budget
from modalign.training.methods import resolve_method
from modalign.training.session import Session, SessionResult
from modalign.training.settings import Stage, TrainSettings
from modalign.training.sources import Parts
from modalign.training.trials import TRIAL_STEPS

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

WORDS = ("yes", "no", "seven", "three plus four is seven.", "a two in the upper left corner.")
EVERY_STEP = 1e-9  # checkpoint_seconds that save after every step
WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


def samples(tokenizer: Any, count: int, first: int = 0) -> list[Sample]:
    """Samples of 0, 1 or 2 images and answers of unequal length, some of them about one image."""
    made = []
    for number in range(first, first + count):
        images = (1, 0, 2, 1, 1)[number % 5]
        question = [tiny.image((number - number % 2) * 10 + place) for place in range(images)]
        answer = WORDS[(number * 7) % len(WORDS)]
        turns = ([*question, f"what is {'one ' * (number % 4)}?"], answer)
        made.append(tokenise(tiny.record(*turns, row=number), tokenizer))
    return made


def paired(made: Sequence[Sample]) -> list[Sample]:
    """The same in groups of two neighbours, of which one has the skill ``a`` and the other ``b``."""
    records = [
        replace(sample.record, group=f"g{number // 2}", skill="ab"[number % 2])
        for number, sample in enumerate(made)
    ]
    return [replace(sample, record=r) for sample, r in zip(made, records, strict=True)]


@dataclass
class Plan:
    """A training that any process can start: all of it can be written as JSON."""

    llm: str
    tower: str
    cache: str
    method: str = "mlp"
    budget: str = "64samples"
    factor: float | None = 1.0
    seed: int = 0
    count: int = 40
    val: int = 8
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    paired: bool = False
    trial_steps: int = TRIAL_STEPS  # fewer make learning-rate trials of small budgets

    def session(self, report: Callable[..., None] | None = None, **changes: Any) -> Session:
        """A fresh session."""
        settings = {"batch_size": 8, "val_points": 2, "device": "cpu", **self.settings, **changes}
        parts = Parts(llm=self.llm, encoder={"image": self.tower}, feature_layer=-1,
                      image_size=tiny.SIDE, patch_size=tiny.PATCH)  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(self.llm)
        prepare_tokenizer(tokenizer)
        return Session(
            resolve_method(self.method, [Stage(**stage) for stage in self.recipe]),
            parts,
            TrainSettings(**settings),
            paired(samples(tokenizer, self.count))
            if self.paired
            else samples(tokenizer, self.count),
            samples(tokenizer, self.val, 1000),
            Path(self.cache),
            self.seed,
            report=report,
        )

    def run(self, folder: Path, session: Session | None = None) -> SessionResult:
        """Train in ``folder``."""
        session = session or self.session()
        with patch("modalign.training.trials.TRIAL_STEPS", self.trial_steps):
            return session.run(Budget.parse(self.budget), folder, self.factor)


def trained(plan: Plan, folder: Path) -> tuple[dict[str, Tensor], SessionResult]:
    """Train without interruption; what came out."""
    session = plan.session()
    result = plan.run(folder, session)
    return session.trained_state(), result


def die_at_write(folder: Path, number: int) -> None:
    """SIGKILL this process just before its n-th operation on a file or directory under ``folder``."""
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WRITES and str(folder) in str(arguments[0]):
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def trained_through_kills(
    plan: Plan, folder: Path, seed: int, longest: int
) -> tuple[dict[str, Tensor], int]:
    """Train, killed again and again at seeded moments; the weights and the number of kills."""
    draw = random.Random(seed)
    out, kills = folder.with_name(folder.name + "-trained.safetensors"), 0
    folder.mkdir(exist_ok=True)
    while not out.exists():
        moment = draw.randint(1, longest)

        def work(moment: int = moment) -> None:
            session = plan.session()
            die_at_write(folder, moment)
            plan.run(folder, session)
            save_file(session.trained_state(), out)

        code = in_child(work)
        assert code in (0, -signal.SIGKILL), code
        kills += code != 0
        assert kills < 200
    return load_file(out), kills


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0) -> None:
    """Equal names and tensors, bit for bit or within a tolerance."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tolerance:
            torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(tensor, second[name]), name


def main(arguments: Sequence[str]) -> None:
    """Train the runs of a JSON file (several in one start: starting costs seconds)."""
    from distributed_work import work

    torch.set_num_threads(1)
    work(json.loads(Path(arguments[0]).read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
