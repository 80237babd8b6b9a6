"""Train one method under one budget: compose the model, run its stages, find its learning rate.

``modalign train`` runs a session once; ``modalign compare`` runs one per method and seed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraModel
from torch import Tensor

from modalign.data.stored import MediaOf
from modalign.data.supervision import Sample
from modalign.errors import ModalignError, UsageError
from modalign.models.collation import CachedFeatures, Collator, MediaSource
from modalign.models.compose import LanguageModel, compose
from modalign.models.encoders.loading import Encoder
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor
from modalign.strict_json import loads
from modalign.tools.chain import ToolChain
from modalign.training import checkpoint
from modalign.training.budget import Budget, Ledger
from modalign.training.learners import Learner, stage_one_learner
from modalign.training.methods import Method
from modalign.training.parallel import Parallel
from modalign.training.recipes import select
from modalign.training.references import References
from modalign.training.settings import EncoderMode, Stage, TrainSettings
from modalign.training.sources import Parts, sources_of
from modalign.training.staged import Report, Staged
from modalign.training.tool_methods import entries_of
from modalign.training.tracking import Track, check_tracker, open_tracker
from modalign.training.trainable import PartCount, add_lora, count_parts, freeze_for
from modalign.training.trainer import (
    NonFiniteLossError,
)
from modalign.training.trials import (
    NEXT_SEED,
    TRIAL_FACTORS,
    TRIAL_SEEDS,
    LearningRateTrial,
    TrialRun,
    best,
    new_connectors,
    trial_share,
)


@dataclass
class SessionResult:
    """The result of training one method under one seed.

    Attributes:
        factor: factor on all learning rates.
        ledger: everything spent: earlier stages, trials, training.
        curve: learning curve of the last stage.
        trials: learning-rate trials (empty if the factor was given, or the budget is too small for them).
        search: the part of ``ledger`` spent by trials.
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
    """Return a method's model on its device, ready for its last stage, its processor, and LoRA, if any.

    ``fixed`` gives the connectors of modalities that do not use the method's.
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


class Session(Staged):
    """One method under one seed: its model, processor, data and spending.

    Args:
        method: connector, size and recipe.
        parts: language model and encoder.
        settings: training settings.
        train, val: tokenised samples.
        cache: directory of the feature cache.
        seed: seed of new weights and of the data order.
        text: further records without media, for recipes that mix them in.
        filled: the feature cache is known to contain frozen encoders' features of all media.
        parallel: the other processes.
        report: called after every step with the stage's name.
        track: logs values of a step, instead of ``settings.tracker``.
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
        llm = parts.load_llm()
        self.stored = llm.stored
        torch.manual_seed(seed)  # decides encoders that have no weights yet
        raw = method.facts.raw_input
        self.encoders = [] if method.tools else parts.load_encoders(MediaOf(train), raw)
        torch.manual_seed(seed)  # determines connectors and LoRA matrices
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
        """Return parameters per part and how many train in the last stage."""
        return count_parts(self.model)

    # ------------------------------------------------------------------ running

    def run(self, budget: Budget, folder: Path, factor: float | None = None) -> SessionResult:
        """Spend the budget: earlier stages, trials unless ``factor`` is given, training.

        Trials take a fixed share of the budget (:func:`~modalign.training.trials.trial_share`), whether they run
        here or ran under another seed, so every seed trains equally long. Resumes from ``folder``.
        """
        spent = Ledger(seconds=self._tool_seconds())
        if not self.method.trains(self.settings.llm):
            return SessionResult(1.0, spent, [], 0)
        budget = _left(budget, spent, self.method.name)
        track = self.track or open_tracker(self.settings, folder)
        tried = trial_share(budget, self.settings.batch_size)
        main = budget.share(1 - tried)
        for number, stage in enumerate(self.method.stages[:-1]):
            share = main.share(stage.share)
            outcome = self._trainer(stage, share, folder / stage.name, number, track=track).run()
            spent.add(outcome.ledger)
        last = self.method.stages[-1]
        freeze_for(self.model, last, self.settings)
        trials: list[LearningRateTrial] = []
        search = Ledger()
        if factor is None and tried:
            trials, search = self._find_factor(last, budget.share(tried), folder)
            spent.add(search)
            factor = next(trial.factor for trial in trials if trial.kept)
        factor = 1.0 if factor is None else factor
        share = main.share(last.share)
        outcome = self._trainer(last, share, folder / last.name, 100, factor, track=track).run()
        spent.add(outcome.ledger)
        self.model.eval()
        return SessionResult(factor, spent, outcome.curve, outcome.steps, trials, search)

    def _tool_seconds(self) -> float:
        """Return the tools' seconds for the training media, cached from earlier runs."""
        if self.chain is None:
            return 0.0
        media = {medium for sample in self.train_samples for medium in sample.media}
        self.chain.fill(media)
        return self.chain.cost().mean_seconds * len(media)

    def _learner(self, stage: Stage) -> Learner:
        if stage.runs == "stage_one":
            samples = select(self.train_samples, stage, self.seed, self.text_samples)
            source = self._stage_one_source()
            return stage_one_learner(self.model, samples, source, self.collator.pad_id)
        return super()._learner(stage)

    def _stage_one_source(self) -> CachedFeatures:
        """Return the features of the modality that stage one aligns; its encoder is frozen."""
        modalities = [encoder.modality for encoder in self.encoders]
        if len(modalities) != 1:
            raise UsageError(
                f"{self.method.name}: a stage one aligns one modality, not {', '.join(modalities)}; "
                "use the method without its stage one"
            )
        source = self._sources("frozen")[modalities[0]]
        if not isinstance(source, CachedFeatures):
            raise UsageError(
                f"{self.method.name}: its stage one needs a pretrained encoder, but the "
                f"{modalities[0]} encoder is new; use the method without its stage one"
            )
        return source

    # ------------------------------------------------------------------ learning rate

    def _find_factor(
        self, stage: Stage, budget: Budget, folder: Path
    ) -> tuple[list[LearningRateTrial], Ledger]:
        """Try all factors under all seeds of the trials, and keep one (:mod:`modalign.training.trials`).

        Trials of the first seed start from the state the session is in, and all leave it so. Without
        validation data factor 1 is kept and nothing is spent.
        """
        trials = [LearningRateTrial(factor) for factor in TRIAL_FACTORS]
        if not self.val_samples:
            next(trial for trial in trials if trial.factor == 1).kept = True
            return trials, Ledger()
        record = folder / "trials.json"
        known = record.read_text(encoding="utf-8") if record.exists() else None
        if (known := self.parallel.from_main(known)) is not None:
            trials = [LearningRateTrial.of(state) for state in loads(known, nan=True)]
        share = budget.share(1 / (TRIAL_SEEDS * len(trials)))
        start = checkpoint.trainable_state(self.model)
        for number in range(TRIAL_SEEDS):
            seed = self.seed + number * NEXT_SEED
            begin = self._begun(start, seed) if number else start
            for trial in trials:
                if len(trial.runs) > number:
                    continue
                checkpoint.load_trainable(self.model, begin)
                place = folder / f"trial-x{trial.factor:.3g}-seed-{seed}"
                trial.runs.append(self._try(stage, share, place, trial.factor, seed))
                if self.parallel.main:
                    checkpoint.write_json(record, [each.state() for each in trials])
        checkpoint.load_trainable(self.model, start)
        kept = best(trials)
        if kept is None:
            raise ModalignError(
                f"{self.method.name}: every learning-rate trial ended in a loss that is not finite; "
                f"the one at the lowest rate: {trials[0].failure or 'its validation loss is not finite'}"
            )
        kept.kept = True
        if self.parallel.main:
            for place in folder.glob("trial-*"):
                shutil.rmtree(place, ignore_errors=True)
        spent = Ledger()
        for run in (run for trial in trials for run in trial.runs):
            spent.add(run.ledger)
        return trials, spent

    def _begun(self, start: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Return what trials of another seed start from: new connectors, unless an earlier stage made them."""
        if len(self.method.stages) > 1:
            return start
        new = new_connectors(self.model, seed)
        return {name: new.get(name, value) for name, value in start.items()}

    def _try(
        self, stage: Stage, budget: Budget, folder: Path, factor: float, seed: int
    ) -> TrialRun:
        trainer = self._trainer(stage, budget, folder, 50, factor, trial_seed=seed)
        self.val_losses = []
        try:
            loss, failure = trainer.run().val_loss, None
        except NonFiniteLossError as error:
            loss, failure = None, str(error)
        run = TrialRun(failure=failure, ledger=trainer.ledger)
        if loss is not None and math.isfinite(loss):
            if not self.val_losses:  # resumed after its last validation
                assert trainer.validate is not None
                trainer.validate()
            run.val_loss, run.losses = loss, self.val_losses
        return run


def _left(budget: Budget, spent: Ledger, method: str) -> Budget:
    """Return what remains of a budget in seconds after the tools have processed the training media."""
    if budget.kind != "seconds" or not spent.seconds:
        return budget
    if spent.seconds >= budget.amount:
        raise UsageError(
            f"{method}: its tools take {spent.seconds:.0f} s for the training media, the budget is "
            f"{budget}; raise it, or tune on fewer records"
        )
    return Budget("seconds", budget.amount - spent.seconds)
