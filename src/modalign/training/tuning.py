"""Train a saved model further: a causal language model, a Llava, or one that modalign saved.

Recovery after pruning, distillation, unlearning, a federated client's round: all are stages (records, an
objective, references, roles) under a budget, run here by the one trainer.

    opened = open_composed("models/mine")
    tuning = Tuning(opened, [Stage(llm="lora")], settings, read_samples(path, opened.tokenizer))
    tuning.run(Budget.parse("2000samples"), Path("runs/tuned/run"))
    tuning.save(Path("runs/tuned/model"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from modalign.cache import cache_directory
from modalign.chat_templates import separator_id
from modalign.data.corpus import is_corpus, read_corpus, windows
from modalign.data.modalities import DEFAULT
from modalign.data.readers import read_records
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import validate
from modalign.errors import UsageError
from modalign.models.heads import Head
from modalign.models.prompts import Prompt
from modalign.models.saved import OpenedModel
from modalign.progress import Progress, within
from modalign.training.budget import Budget, Ledger
from modalign.training.doctor.checks_saving import check_room_for_model
from modalign.training.doctor.preflight import preflight_session
from modalign.training.methods import Method
from modalign.training.parallel import Parallel
from modalign.training.recipes import check_data
from modalign.training.references import References
from modalign.training.settings import EncoderMode, Stage, TrainSettings
from modalign.training.sources import sources_of
from modalign.training.staged import Report, Staged
from modalign.training.tool_methods import ToolMethod
from modalign.training.tracking import Track, check_tracker, open_tracker
from modalign.training.trainable import PartCount, add_lora, count_parts, freeze_for
from modalign.training.trainer import StageOutcome


class Tuning(Staged):
    """A saved model with its data and stages.

    Args:
        opened: the model; its weights become float32 and are trained in place.
        stages: in order; their shares of the budget need not add up to 1.
        settings: training settings; a stage may override what trains.
        train, val: tokenised samples (:func:`read_samples`).
        seed: of LoRA's matrices and of the data order.
        prompt: how the records are shown (:meth:`Prompt.shown`, before they are tokenised); its separator trains,
            and it is saved with the model, together with the fusion that the stages learn.
        text: further samples without media, for stages that mix them in.
        cache: directory of the feature cache; None: the usual one.
        parallel: the other processes.
        report: called after every step with the stage's name.
        track: logs values of a step, instead of ``settings.tracker``.

    Raises:
        UsageError: the data lacks records for a stage, or a stage cannot run on this model.
    """

    def __init__(
        self,
        opened: OpenedModel,
        stages: Sequence[Stage],
        settings: TrainSettings,
        train: Sequence[Sample],
        val: Sequence[Sample] = (),
        *,
        seed: int = 0,
        prompt: Prompt | None = None,
        text: Sequence[Sample] = (),
        cache: Path | None = None,
        parallel: Parallel | None = None,
        report: Report | None = None,
        track: Track | None = None,
    ) -> None:
        check_tracker(settings)
        self.opened, self.settings, self.seed = opened, settings, seed
        self.train_samples, self.val_samples, self.text_samples = train, val, text
        self.report, self.track = report, track
        self.parallel = parallel or Parallel(settings)
        self.stored, self.val_losses = opened.stored, []
        self.heads: dict[str, Head] = {}  # that stages learnt
        self.prompt = prompt or Prompt()
        soft = separator_id(opened.tokenizer) if self.prompt.soft else None
        if self.prompt.soft and soft is None:
            raise UsageError("the prompt needs a separator: call add_separator before tokenising")
        if soft is not None and self.parallel.world > 1 and settings.parallel == "fsdp":
            raise UsageError("a sharded model has no whole table for a separator: use ddp")
        self.method = _method_of(opened, stages)
        self.notes = check_data(self.method.name, self.method.stages, train, text)
        self.model, self.processor = opened.model.float(), opened.reader
        torch.manual_seed(seed)  # determines LoRA matrices
        adapted = any((stage.llm or settings.llm) == "lora" for stage in stages)
        self.lora = add_lora(self.model, settings) if adapted else None
        if settings.gradient_checkpointing:
            self.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.to(self.device)
        trains = any((stage.encoder or settings.encoder) == "full" for stage in stages)
        mode: EncoderMode = "full" if trains else "frozen"
        sources = sources_of(
            opened.encoders, mode, cache or cache_directory(), self.device, media=None
        )
        self.collator = opened.collator(sources, settings.packed)
        self.references = References(opened.tokenizer, self.device, soft)
        freeze_for(self.model, self.method.stages[-1], settings)

    def check(self, folder: Path | None = None) -> list[str]:
        """Try every stage on a batch before step 0; returns notes for the report.

        Args:
            folder: that the trained model goes to; see that the disk takes it.

        Raises:
            UsageError, DataError: what would have stopped the training; the message says where.
        """
        found = [*self.notes, *preflight_session(self, processes=self.parallel.world)]
        if folder is not None:
            check_room_for_model(self.model, folder)
        return found

    def parts_table(self) -> list[PartCount]:
        """Return parameters per part and how many train in the last stage, and those of references."""
        return [*count_parts(self.model), *self.references.table()]

    def run(self, budget: Budget, folder: Path, factor: float = 1.0) -> list[StageOutcome]:
        """Spend the budget over the stages by their shares; resumes from ``folder``.

        Args:
            budget: of all stages together, references included.
            folder: of checkpoints and logs, one folder a stage.
            factor: on all learning rates.

        Returns:
            Each stage's outcome; :func:`spent` adds up what they cost.
        """
        track = self.track or open_tracker(self.settings, folder)
        outcomes = []
        for number, stage in enumerate(self.method.stages):
            place = folder / stage.name
            share = budget.share(stage.share)
            trainer = self._trainer(stage, share, place, number, factor, track=track)
            outcomes.append(trainer.run())
            self.heads.update(outcomes[-1].heads)
            if outcomes[-1].fusion:
                self.prompt = replace(self.prompt, fusion=outcomes[-1].fusion)
        self.model.eval()
        return outcomes

    def save(self, folder: Path, *, card: str = "") -> None:
        """Merge LoRA, if any, and write the model as what it was opened from (:meth:`OpenedModel.save`)."""
        self.merge_lora()
        self.opened.save(folder, dtype=self.saved_dtype, card=card)
        for name, head in self.heads.items():
            head.save(folder, name)
        if self.prompt.soft or self.prompt.fusion:
            self.prompt.save(folder)


def spent(outcomes: Sequence[StageOutcome]) -> Ledger:
    """Return what all stages cost together."""
    total = Ledger()
    for outcome in outcomes:
        total.add(outcome.ledger)
    return total


def read_samples(
    source: Path,
    opened: OpenedModel,
    *,
    length: int = 256,
    skip_broken: str = "0%",
    progress: Progress | None = None,
) -> list[Sample]:
    """Read a file to train a saved model on: records of conversations, or plain text.

    A text file, or rows that hold nothing but a text, become windows in which every token is supervised; other
    rows are records, with the tokenizer's own chat template.

    Args:
        source: file, or a folder that datasets saved.
        opened: the model.
        length: tokens of a window of plain text.
        skip_broken: share of broken records that may be dropped.

    Raises:
        DataError: it cannot be read; the message lists file and row.
    """
    if is_corpus(source):
        return windows(read_corpus(source), opened.tokenizer, length)
    modalities = [each.modality for each in opened.encoders] or DEFAULT
    found = read_records(source, modalities=modalities)
    tell = within(f"checking {source.name}", progress)
    records = validate(found, modalities=modalities, skip_broken=skip_broken, progress=tell).records
    return tokenise_all(records, opened.tokenizer)


def _method_of(opened: OpenedModel, stages: Sequence[Stage]) -> Method:
    """Return the method that a saved model is of, with the stages that are to come."""
    whole = sum(stage.share for stage in stages)
    parts = tuple(stage.model_copy(update={"share": stage.share / whole}) for stage in stages)
    name = Path(opened.name).name or opened.name
    bridges = opened.model.config.bridges or {}
    if not bridges:
        return Method(name, "", "matched", parts, tools=ToolMethod("", "full"))
    connectors = {bridge["connector"]["name"] for bridge in bridges.values()}
    return Method(name, sorted(connectors)[0], "matched", parts)
