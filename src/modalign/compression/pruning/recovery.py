"""Recovery: a pruned model trained on its parent's predictions, or on the texts themselves, under a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from modalign.compression.distillation.judging import Judged, judge
from modalign.compression.distillation.schedules import Variant
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.structure import vision_tower
from modalign.compression.pruning.texts import Texts
from modalign.errors import UsageError
from modalign.files import write_atomically
from modalign.models.parts import hidden_size
from modalign.models.saved import OpenedModel, open_composed
from modalign.progress import Progress
from modalign.runs import read_result
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.trainer import StepProgress
from modalign.training.tuning import Tuning, spent
from modalign.trust import trusted

LARGE = 500_000_000  # parameters from which on a LoRA is trained by default
RATE, LORA_TIMES, MOST_RATE = 0.064, 10, 2e-3  # learning rate of width 1, of a LoRA; the highest
SCHEDULES = {"kl": "after_pruning", "cross_entropy": "cross_entropy"}


class Scores(BaseModel):
    """A model on the held-out samples, and on the evaluation records where there are some."""

    held_out: Judged
    task: Judged | None = None


class Recovered(BaseModel):
    """One recovery: what it cost, and how its model is judged."""

    samples: int
    seconds: float
    flops: float
    scores: Scores


def scores_of(opened: OpenedModel, texts: Texts, device: torch.device) -> Scores:
    """Judge a model."""
    held = judge(opened, texts.held_out, device)
    return Scores(held_out=held, task=judge(opened, texts.task, device) if texts.task else None)


def chosen_mode(config: PruneConfig, parameters: int) -> str:
    """How the model trains: as asked, or by its size.

    Raises:
        UsageError: a LoRA is asked for where it cannot train what was pruned.
    """
    mode = config.recover or ("lora" if parameters > LARGE else "full")
    if mode != "lora":
        return mode
    if config.recover is None and (config.form == "mask" or config.part == "vision"):
        return "full"
    if config.form == "mask":
        raise UsageError("--recover lora would fill the zeros of the form mask: use full, or none")
    if config.part == "vision":
        raise UsageError(
            "--recover lora reaches the language model only: for the vision tower use full"
        )
    return mode


def settings_of(config: PruneConfig, opened: OpenedModel, mode: str) -> TrainSettings:
    """The settings of the training: what was pruned trains; by default at a rate that falls with its width."""
    given = config.training
    vision = config.part == "vision"
    trains: dict[str, Any] = {"llm": "frozen" if vision else mode}
    trains["encoder"] = "full" if vision else given.encoder
    if "learning_rates" not in given.model_fields_set:
        model = opened.model
        width = (
            vision_tower(model).config.hidden_size if vision else hidden_size(model.language_model)
        )
        rate = min(RATE / width, MOST_RATE)
        own = min(rate * LORA_TIMES, MOST_RATE) if mode == "lora" else rate
        trains["learning_rates"] = LearningRates(connector=rate, llm=own, encoder=rate)
    return given.model_copy(update=trains)


def stages_of(config: PruneConfig, *, media: bool) -> list[Stage]:
    """The stages: distillation's own, with the parent as the teacher."""
    if config.recover_by == "cross_entropy":
        return [Stage(name="recover", objective={"cross_entropy": 1.0})]
    return Variant.of(SCHEDULES["kl"]).stages_for(config.model, {}, connectors=media)


@dataclass
class Recovery:
    """The recovery of one model under one seed.

    Attributes:
        config: what was asked for.
        texts: the data.
        mode: full or lora.
        folder: of the model.
        name: for progress.
        seed: of the training.
        budget: of the training.
        scratch: from random weights.
    """

    config: PruneConfig
    texts: Texts
    mode: str
    folder: Path
    name: str
    seed: int
    budget: Budget
    scratch: bool = False

    def tuning(self, progress: Progress | None = None) -> Tuning:
        """The model, opened, with its data and stages."""
        with trusted():
            opened = open_composed(self.folder)
        if self.scratch:
            _redraw(opened, self.seed)
        return Tuning(
            opened,
            stages_of(self.config, media=bool(opened.encoders)),
            settings_of(self.config, opened, self.mode),
            self.texts.calibration,
            seed=self.seed,
            report=_reporting(progress, f"recovering {self.name}"),
        )

    def run(
        self,
        work: Path,
        device: torch.device,
        *,
        into: Path | None = None,
        progress: Progress | None = None,
        texts: Texts | None = None,
    ) -> Recovered:
        """Train and judge, unless it is done.

        Args:
            work: folder of checkpoints and the result.
            device: where models are judged.
            into: folder of the trained model; None: it is not kept.
            progress: told after each step.
            texts: to judge on; None: its own.
        """
        file = work / "result.json"
        found = read_result(file, Recovered)
        if found is not None and (into is None or into.is_dir()):
            return found
        tuning = self.tuning(progress)
        cost = spent(tuning.run(self.budget, work / "run"))
        tuning.merge_lora()
        tuning.opened.model.eval()
        if into is not None:
            with trusted():
                tuning.save(into)
        found = Recovered(
            samples=cost.samples,
            seconds=cost.seconds,
            flops=cost.flops,
            scores=scores_of(tuning.opened, texts or self.texts, device),
        )
        write_atomically(file, found.model_dump_json())
        return found


def _redraw(opened: OpenedModel, seed: int) -> None:
    """Draw the language model's weights anew."""
    torch.manual_seed(seed)
    model: Any = opened.model.language_model
    model.load_state_dict(type(model)(model.config).state_dict())


def _reporting(progress: Progress | None, what: str) -> Callable[[str, StepProgress], None] | None:
    if progress is None:
        return None

    def report(stage: str, step: StepProgress) -> None:
        progress(f"{what} (loss {step.loss:.3f})"[:60], int(step.fraction * 1000), 1000)

    return report
