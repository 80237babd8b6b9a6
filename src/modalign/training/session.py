"""Train one method under one budget: compose the model, run its stages, find its learning rate.

``modalign train`` runs a session once; ``modalign compare`` runs one per method and seed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import LoraModel
from torch import Tensor

from modalign.data.stored import MediaOf
from modalign.data.supervision import Sample
from modalign.errors import ModalignError, UsageError
from modalign.evaluation.scoring import score
from modalign.models.collation import CachedFeatures, Collator, MediaSource
from modalign.models.compose import LanguageModel, compose
from modalign.models.encoders.loading import Encoder
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor
from modalign.tools.chain import ToolChain
from modalign.training import checkpoint
from modalign.training.budget import Budget, Ledger
from modalign.training.learners import Composed, Learner, ModelLearner, stage_one_learner
from modalign.training.methods import Method
from modalign.training.parallel import Parallel
from modalign.training.recipes import select
from modalign.training.references import References
from modalign.training.settings import EncoderMode, LearningRates, Stage, TrainSettings
from modalign.training.sources import Parts, sources_of
from modalign.training.tool_methods import entries_of
from modalign.training.tracking import Track, check_tracker, open_tracker
from modalign.training.trainable import PartCount, add_lora, count_parts, freeze_for
from modalign.training.trainer import (
    NonFiniteLossError,
    StepProgress,
    Trainer,
    Validate,
    cosine,
    trapezoid,
)

TRIAL_FACTORS = (1 / 3, 1.0, 3.0)
# Of a method's budget, for all trials: three for a fifth of it each, the better two as long again.
TRIAL_SHARE = 0.25

Report = Callable[[str, StepProgress], None]


@dataclass
class LearningRateTrial:
    """One factor on all learning rates, and how it did on validation data."""

    factor: float
    samples: int = 0
    val_loss: float | None = None
    kept: bool = False
    failure: str | None = None
    losses: list[float] = field(default_factory=list)  # of validation samples, by their tokens

    @property
    def loss(self) -> float:
        """Validation loss; infinite where the trial broke down or did not run."""
        return float("inf") if self.val_loss is None else self.val_loss


@dataclass
class SessionResult:
    """The result of training one method under one seed.

    Attributes:
        factor: on all learning rates.
        ledger: everything spent: earlier stages, trials, training.
        curve: of the last stage.
        trials: learning-rate trials (empty where the factor was given).
        search: what the trials spent, of ``ledger``.
    """

    factor: float
    ledger: Ledger
    curve: list[dict[str, float | None]]
    steps: int
    trials: list[LearningRateTrial] = field(default_factory=list)
    search: Ledger = field(default_factory=Ledger)


def composed(
    method: Method,
    llm: LanguageModel,
    encoders: Sequence[Encoder],
    settings: TrainSettings,
    device: torch.device,
    fixed: Mapping[str, str] | None = None,
) -> tuple[ModalignForConditionalGeneration, ModalignProcessor, LoraModel | None]:
    """A method's model on its device, ready for its last stage; its processor; LoRA, if there is any.

    ``fixed`` names connectors of modalities that do not have the method's.
    """
    model, processor = compose(
        llm,
        encoders,
        {e.modality: (fixed or {}).get(e.modality, method.connector) for e in encoders},
        method.variant,
        method.options,
    )
    adapted = any((stage.llm or settings.llm) == "lora" for stage in method.stages)
    lora = add_lora(model, settings) if adapted else None
    if settings.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(device)
    freeze_for(model, method.stages[-1], settings)
    return model, processor, lora


class Session(Composed):
    """One method under one seed: its model, processor, data and spending.

    Args:
        method: connector, size and recipe.
        parts: language model and encoder.
        settings: how to train.
        train, val: tokenised samples.
        cache: directory of the feature cache.
        seed: of new weights and of the data order.
        text: further records without media, for recipes that mix them in.
        filled: the feature cache is known to hold what frozen encoders give for all media.
        parallel: companions of this process.
        report: called after every step with the stage's name.
        track: logs values of a step, in place of ``settings.tracker``.
    """

    def __init__(
        self,
        method: Method,
        parts: Parts,
        settings: TrainSettings,
        train: Sequence[Sample],
        val: Sequence[Sample],
        cache: Path,
        seed: int,
        *,
        text: Sequence[Sample] = (),
        filled: bool = False,
        parallel: Parallel | None = None,
        report: Report | None = None,
        track: Track | None = None,
    ) -> None:
        self.text_samples, self.filled = text, filled
        self.method, self.parts, self.settings = method, parts, settings
        self.rates = self.rates_of(method.stages[-1])
        self.train_samples, self.val_samples = train, val
        self.cache, self.seed, self.report, self.track = cache, seed, report, track
        check_tracker(settings)
        self.parallel = parallel or Parallel(settings)
        self.device = self.parallel.device
        llm = parts.load_llm()
        torch.manual_seed(seed)  # decides encoders that have no weights yet
        raw = method.facts.raw_input
        self.encoders = [] if method.tools else parts.load_encoders(MediaOf(train), raw)
        torch.manual_seed(seed)  # decides connectors and the LoRA matrices
        self.val_losses: list[float] = []  # of the last validation, per sample
        self.model, self.processor, self.lora = composed(
            method, llm, self.encoders, settings, self.device, parts.connector
        )
        self.collator = Collator.of(
            self.model, self.processor.tokenizer, self._sources(settings.encoder), settings.packed
        )
        self.references = References(self.processor.tokenizer, self.device)
        self.chain: ToolChain | None = None
        if method.tools:
            self.chain, self.collator.entries = entries_of(
                method.tools, parts, self.processor.tokenizer, cache
            )

    def _sources(self, mode: EncoderMode) -> dict[str, MediaSource]:
        known = self.filled and mode == self.settings.encoder
        media = [] if known else list(MediaOf(self.train_samples, self.val_samples))
        return sources_of(
            self.encoders, mode, self.cache, self.device, media, self.method.facts.raw_input
        )

    def parts_table(self) -> list[PartCount]:
        """Parameters per part and how many train in the last stage."""
        return count_parts(self.model)

    # ------------------------------------------------------------------ running

    def run(self, budget: Budget, folder: Path, factor: float | None = None) -> SessionResult:
        """Spend the budget: earlier stages, trials unless ``factor`` is given, training.

        Trials take a fixed share of the budget whether they are run here or were run under
        another seed, so every seed trains equally long. Resumes whatever ``folder`` holds.
        """
        spent = Ledger(seconds=self._tool_seconds())
        if not self.method.trains(self.settings.llm):
            return SessionResult(1.0, spent, [], 0)
        budget = _left(budget, spent, self.method.name)
        track = self.track or open_tracker(self.settings, folder)
        main = budget.share(1 - TRIAL_SHARE)
        for number, stage in enumerate(self.method.stages[:-1]):
            share = main.share(stage.share)
            outcome = self._trainer(stage, share, folder / stage.name, number, track=track).run()
            spent.add(outcome.ledger)
        last = self.method.stages[-1]
        freeze_for(self.model, last, self.settings)
        trials: list[LearningRateTrial] = []
        search = Ledger()
        if factor is None:
            trials, search = self._find_factor(last, budget.share(TRIAL_SHARE), folder)
            spent.add(search)
            factor = next(trial.factor for trial in trials if trial.kept)
        share = main.share(last.share)
        outcome = self._trainer(last, share, folder / last.name, 100, factor, track=track).run()
        spent.add(outcome.ledger)
        self.model.eval()
        return SessionResult(factor, spent, outcome.curve, outcome.steps, trials, search)

    def _tool_seconds(self) -> float:
        """Return what the tools took for the training media; remembered where they ran before."""
        if self.chain is None:
            return 0.0
        media = {medium for sample in self.train_samples for medium in sample.media}
        self.chain.fill(media)
        return self.chain.cost().mean_seconds * len(media)

    def _trainer(
        self,
        stage: Stage,
        budget: Budget,
        folder: Path,
        salt: int,
        factor: float = 1.0,
        trial: bool = False,
        track: Track | None = None,
    ) -> Trainer:
        freeze_for(self.model, stage, self.settings)
        torch.manual_seed(self.seed * 1000 + salt)  # decides stage one's text branch
        learner = self._learner(stage)
        validate = self._validate(stage) if stage.runs == "model" else None
        return Trainer(
            learner,
            stage,
            self.settings,
            self.rates_of(stage).scaled(factor),
            budget,
            folder,
            self.seed,
            self.parallel,
            schedule=trapezoid if trial else cosine,
            validate=validate,
            report=(lambda step: self.report(folder.name, step)) if self.report else None,  # type: ignore[misc]
            track=None if trial or track is None else _under(stage.name, track),
            val_points=0 if trial else None,
            references=self.references.of(stage, self.model),
        )

    def rates_of(self, stage: Stage) -> LearningRates:
        """Return a stage's learning rates, the connector's scaled as its papers do."""
        rates = stage.learning_rates or self.settings.learning_rates
        return rates.model_copy(
            update={"connector": rates.connector * self.method.facts.rate_scale}
        )

    def _learner(self, stage: Stage) -> Learner:
        if stage.runs == "stage_one":
            samples = select(self.train_samples, stage, self.seed, self.text_samples)
            source = self._stage_one_source()
            return stage_one_learner(self.model, samples, source, self.collator.pad_id)
        return ModelLearner(self, stage)

    def _stage_one_source(self) -> CachedFeatures:
        """Features of the one modality that stage one aligns; its encoder is frozen there."""
        modalities = [encoder.modality for encoder in self.encoders]
        if len(modalities) != 1:
            raise UsageError(
                f"{self.method.name}: a stage one aligns one modality, not {', '.join(modalities)}; "
                "use the method without its stage one"
            )
        source = self._sources("frozen")[modalities[0]]
        if not isinstance(source, CachedFeatures):
            raise UsageError(
                f"{self.method.name}: its stage one needs an encoder with weights of its own, and the "
                f"{modalities[0]} encoder's are new; use the method without its stage one"
            )
        return source

    def _validate(self, stage: Stage) -> Validate | None:
        if not self.val_samples:
            return None
        chosen = sorted(self.val_samples, key=lambda sample: sample.record.id)
        step = max(len(chosen) // self.settings.val_samples, 1)
        chosen = chosen[::step][: self.settings.val_samples]

        def validate() -> tuple[float, float]:
            self.model.eval()
            found = score(self.model, chosen, self.collator, self.device)
            freeze_for(self.model, stage, self.settings)
            self.val_losses = (found.loss * len(found.loss) / found.tokens.sum()).tolist()
            return found.mean_loss, float(found.correct.mean())

        return validate

    # ------------------------------------------------------------------ learning rate

    def _find_factor(
        self, stage: Stage, budget: Budget, folder: Path
    ) -> tuple[list[LearningRateTrial], Ledger]:
        """Successive halving over x1/3, x1, x3, on validation loss.

        The rate stays constant in the first rung and falls to zero at the end of the second. A
        factor other than 1 must be better than 1 by more than two standard errors of the paired
        difference: short trials are noisy, and the given rate is somebody's experience.

        Every trial starts from the state the session is in, and leaves it so. Without validation
        data the middle factor is kept and nothing is spent.
        """
        trials = [LearningRateTrial(factor) for factor in TRIAL_FACTORS]
        if not self.val_samples:
            trials[1].kept = True
            return trials, Ledger()
        # A trial's whole budget is two rungs; the first rung stops half-way.
        whole, todo = budget.share(2 / 5), [(number, 0.5) for number in range(len(trials))]
        ledgers = [Ledger() for _ in trials]
        record = folder / "trials.json"
        if record.exists():
            saved = json.loads(record.read_text())
            trials = [LearningRateTrial(**trial) for trial in saved["trials"]]
            ledgers, todo = [Ledger(**spent) for spent in saved["ledgers"]], saved["todo"]
        start = checkpoint.trainable_state(self.model)
        while todo:
            (number, until), *todo = todo
            checkpoint.load_trainable(self.model, start)
            ledgers[number] = self._try(stage, whole, folder, trials[number], until)
            if not todo and until < 1:
                todo = [(number, 1.0) for number in _best(trials)[:2]]
            if not todo and trials[best := _best(trials)[0]].val_loss is not None:
                trials[best].kept = True
            if self.parallel.main:
                state = {
                    "trials": [asdict(trial) for trial in trials],
                    "ledgers": [ledger.state() for ledger in ledgers],
                    "todo": todo,
                }
                checkpoint.write_json(record, state)
        checkpoint.load_trainable(self.model, start)
        if not any(trial.kept for trial in trials):
            raise ModalignError(
                f"{self.method.name}: every learning-rate trial ended in a loss that is not finite; "
                f"the one at the lowest rate: {trials[0].failure or 'its validation loss is not finite'}"
            )
        if self.parallel.main:
            for trial in trials:
                shutil.rmtree(_trial_folder(folder, trial), ignore_errors=True)
        spent = Ledger()
        for ledger in ledgers:
            spent.add(ledger)
        return trials, spent

    def _try(
        self, stage: Stage, budget: Budget, folder: Path, trial: LearningRateTrial, until: float
    ) -> Ledger:
        trainer = self._trainer(
            stage, budget, _trial_folder(folder, trial), 50, trial.factor, trial=True
        )
        self.val_losses = []
        try:
            loss = trainer.run(until).val_loss
        except NonFiniteLossError as error:
            loss, trial.failure = None, str(error)
        trial.val_loss = loss if loss is not None and math.isfinite(loss) else None
        trial.samples = trainer.ledger.samples
        if trial.val_loss is not None and not self.val_losses:  # resumed after its last validation
            assert trainer.validate is not None
            trainer.validate()
        trial.losses = self.val_losses if trial.val_loss is not None else []
        return trainer.ledger

    # ------------------------------------------------------------------ the trained state

    def trained_state(self) -> dict[str, Tensor]:
        """Return what any stage trained, by name: enough to rebuild the model from its parts."""
        state: dict[str, Tensor] = {}
        for stage in self.method.stages:
            freeze_for(self.model, stage, self.settings)
            state.update(checkpoint.trainable_state(self.model))
        self.model.eval()
        return state

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Put what :meth:`trained_state` gave back into a session built from the same parts.

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
        """Fold LoRA into the weights it sits on: afterwards the language model is a plain one."""
        if self.lora is not None:
            self.model.language_model = self.lora.merge_and_unload()
            self.lora = None


def _left(budget: Budget, spent: Ledger, method: str) -> Budget:
    """What is left of a budget of seconds once the tools have looked at the training media."""
    if budget.kind != "seconds" or not spent.seconds:
        return budget
    if spent.seconds >= budget.amount:
        raise UsageError(
            f"{method}: its tools take {spent.seconds:.0f} s for the training media, the budget is "
            f"{budget}; raise it, or tune on fewer records"
        )
    return Budget("seconds", budget.amount - spent.seconds)


def _under(stage: str, track: Track) -> Track:
    """Return the same tracker with the stage's name before every value's."""
    return lambda values, step: track({f"{stage}/{key}": x for key, x in values.items()}, step)


def _best(trials: Sequence[LearningRateTrial]) -> list[int]:
    """Numbers of the trials, best first; factor 1 before what is not clearly better than it."""
    base = next((trial for trial in trials if trial.factor == 1), None)

    def key(number: int) -> tuple[float, bool, float]:
        trial = trials[number]
        if base is None or trial is base or not _barely_better(trial, base):
            return trial.loss, False, trial.loss
        return base.loss, True, trial.loss

    return sorted(range(len(trials)), key=key)


def _barely_better(trial: LearningRateTrial, base: LearningRateTrial) -> bool:
    """Better than the base, but by no more than two standard errors of the paired difference."""
    if len(trial.losses) != len(base.losses) or len(trial.losses) < 2:
        return False
    gains = np.subtract(base.losses, trial.losses)
    return bool(0 < gains.mean() <= 2 * gains.std(ddof=1) / np.sqrt(len(gains)))


def _trial_folder(folder: Path, trial: LearningRateTrial) -> Path:
    return folder / f"trial-x{trial.factor:.3g}"
