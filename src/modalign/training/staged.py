"""What trains in stages: trainers, validation and the trained state, for a new method and for a saved model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraModel
from torch import Tensor

from modalign.errors import ModalignError
from modalign.evaluation.scoring import score
from modalign.training import checkpoint
from modalign.training.budget import Budget
from modalign.training.learners import Composed, Learner, ModelLearner
from modalign.training.parallel import Parallel
from modalign.training.settings import LearningRates, Stage
from modalign.training.tracking import Track
from modalign.training.trainable import freeze_for
from modalign.training.trainer import SCHEDULES, StepProgress, Trainer, Validate, trapezoid

Report = Callable[[str, StepProgress], None]


class Staged(Composed):
    """A composed model that is trained stage by stage.

    Attributes:
        parallel: the other processes, and the device.
        report: called after every step with the stage's name.
        stored: dtype of the language model's weights as they were.
        lora: its adapters, if any.
        val_losses: of the last validation, per sample.
        validating: seconds of all validations, which are charged to nobody.
    """

    parallel: Parallel
    report: Report | None
    stored: torch.dtype
    lora: LoraModel | None
    val_losses: list[float]
    validating: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.parallel.device

    def _trainer(
        self,
        stage: Stage,
        budget: Budget,
        folder: Path,
        salt: int,
        factor: float = 1.0,
        trial_seed: int | None = None,
        track: Track | None = None,
    ) -> Trainer:
        freeze_for(self.model, stage, self.settings)
        trial = trial_seed is not None
        seed = self.seed if trial_seed is None else trial_seed
        torch.manual_seed(seed * 1000 + salt)  # decides stage one's text branch
        learner = self._learner(stage)
        validate = self._validate(stage) if stage.runs == "model" else None
        return Trainer(
            learner,
            stage,
            self.settings,
            self.rates_of(stage).scaled(factor),
            budget,
            folder,
            seed,
            self.parallel,
            schedule=trapezoid if trial else SCHEDULES[self.settings.schedule],
            validate=validate,
            report=(lambda step: self.report(folder.name, step)) if self.report else None,  # type: ignore[misc]
            track=None if trial or track is None else _under(stage.name, track),
            val_points=0 if trial else None,
            references=self.references.of(stage, self.model),
        )

    def _learner(self, stage: Stage) -> Learner:
        return ModelLearner(self, stage)

    def rates_of(self, stage: Stage) -> LearningRates:
        """Return a stage's learning rates, the connector's scaled as its papers do."""
        rates = stage.learning_rates or self.settings.learning_rates
        return rates.model_copy(
            update={"connector": rates.connector * self.method.facts.rate_scale}
        )

    def _validate(self, stage: Stage) -> Validate | None:
        if not self.val_samples:
            return None
        chosen = sorted(self.val_samples, key=lambda sample: sample.record.id)
        step = max(len(chosen) // self.settings.val_samples, 1)
        chosen = chosen[::step][: self.settings.val_samples]

        def validate() -> tuple[float, float]:
            began = time.monotonic()
            self.model.eval()
            found = score(self.model, chosen, self.collator, self.device)
            freeze_for(self.model, stage, self.settings)
            self.val_losses = (found.loss * len(found.loss) / found.tokens.sum()).tolist()
            self.validating += time.monotonic() - began
            return found.mean_loss, float(found.correct.mean())

        return validate

    # ------------------------------------------------------------------ the trained state

    def trained_state(self) -> dict[str, Tensor]:
        """Return everything that a stage trained, by name: enough to rebuild the model from its parts."""
        state: dict[str, Tensor] = {}
        for stage in self.method.stages:
            freeze_for(self.model, stage, self.settings)
            state.update(checkpoint.trainable_state(self.model))
        self.model.eval()
        return state

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`trained_state` into a session built from the same parts.

        Raises:
            ModalignError: the state is another model's.
        """
        parameters = dict(self.model.named_parameters())
        odd = [name for name in state if name not in parameters]
        if odd:
            raise ModalignError(f"the trained weights do not fit the model: {odd[0]} is not in it")
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)

    def merge_lora(self) -> None:
        """Merge LoRA into its weights, which leaves a plain language model."""
        if self.lora is not None:
            self.model.language_model = self.lora.merge_and_unload()
            self.lora = None

    @property
    def saved_dtype(self) -> torch.dtype:
        """What the finished model is saved in."""
        asked = self.settings.save_dtype
        found: torch.dtype = self.stored if asked == "given" else getattr(torch, asked)
        return found


def _under(stage: str, track: Track) -> Track:
    """Return the same tracker with the stage's name before every value's."""
    return lambda values, step: track({f"{stage}/{key}": x for key, x in values.items()}, step)
