"""``modalign unlearn``: make a patch that forgets, and a final folder, from a model and two files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from modalign.data.records import Record
from modalign.data.reformatting import read_questions
from modalign.data.supervision import Sample, tokenise_all
from modalign.errors import ModalignError, UsageError
from modalign.evaluation.scoring import score
from modalign.files import check_free
from modalign.models.asking import modalities_of
from modalign.models.open import open_model
from modalign.models.parts import decoder_layers
from modalign.models.quiet import quietly
from modalign.models.saved import OpenedModel, composed_of, open_composed
from modalign.numbers.estimate import Estimate
from modalign.patches import applied, save_patch
from modalign.patches.difference import difference
from modalign.patches.patch import Patch
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, LLMMode, TrainSettings
from modalign.training.trainer import StepProgress
from modalign.training.tuning import Tuning
from modalign.unlearning.closed_form import OBJECT, edit_away
from modalign.unlearning.facts import as_role, check_apart, check_known, knowledge
from modalign.unlearning.final import WHY, check_final
from modalign.unlearning.methods import FORGET, RETAIN, check_method, stage_of

RATES = {"full": 1e-4, "lora": 2e-3}  # measured: docs/unlearn.md


@dataclass(frozen=True)
class Unlearning:
    """The request.

    Attributes:
        model: folder, without patches.
        forget, retain: files of questions with answers.
        out: the patch file.
        method: one of ``METHODS``.
        mode: ``full`` or ``lora``.
        steps, batch_size, rate: of the training; half of a batch is to be forgotten.
        rank: of LoRA.
        options: of the method's term, or settings of ``edit``.
        to: for ``edit``: ``object``, or a refusal's text.
        start: for ``retrain``, the model before it learned the facts; None starts from random weights.
        final: folder to write, without anything that would restore what was forgotten.
        anyway: continue even if the model does not know what it is to forget.
        seed: of the data order, LoRA's matrices and objects.
        device: to compute on.
    """

    model: Path
    forget: str
    retain: str
    out: Path
    method: str = "npo"
    mode: LLMMode = "lora"
    steps: int = 250
    batch_size: int = 32
    rate: float | None = None
    rank: int = 8
    options: dict[str, Any] = field(default_factory=dict)
    to: str = OBJECT
    start: Path | None = None
    final: Path | None = None
    anyway: bool = False
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Unlearned:
    """The result.

    Attributes:
        patch: file.
        sha256: its hash.
        method, mode: as asked.
        tensors: number of changed tensors.
        known: share of the facts that the model knew; None if there was nothing to compare with.
        loss_before, loss_after: nats per token of answers, by role.
        seconds: of the work.
        final: the folder, if asked for.
        warning: why the patch must not be shipped.
        notes: for the user.
    """

    patch: str
    sha256: str
    method: str
    mode: str
    tensors: int
    known: Estimate | None
    loss_before: dict[str, float]
    loss_after: dict[str, float]
    seconds: float
    final: str | None
    warning: str
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return it as JSON."""
        known = None if self.known is None else self.known.model_dump(mode="json")
        return asdict(self) | {"known": known}


@quietly()
def unlearn(
    request: Unlearning,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    said: Callable[[str], None] = lambda message: None,
) -> Unlearned:
    """Make a patch that forgets; the model's folder is not changed.

    Work in progress is in a folder next to the patch, ``NAME.run``, which ``resume`` continues.

    Raises:
        UsageError: an unknown method, a patch that exists, a model with patches.
        DataError: the files cannot be used, overlap, or hold what the model never knew.
        ModalignError: the final folder would restore what was forgotten.
    """
    check_method(request.method)
    if request.out.suffix != ".safetensors":
        raise UsageError(f"{request.out}: the name of a patch file must end in .safetensors")
    check_free(request.out, overwrite=overwrite)
    if request.final is not None:
        check_free(request.final, overwrite=overwrite, folders=True)
    configuration = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(request).items()}
    work = request.out.with_suffix(".run")
    with run_folder(work, configuration, resume=resume, overwrite=overwrite) as folder:
        began = time.monotonic()
        forget, retain = _records(request)
        model, reader = open_model(request.model, device=request.device)
        known = knowledge(model, reader, forget, retain, progress)
        notes = [note for note in (check_known(known, request.anyway),) if note]
        for note in notes:
            said(note)
        folder.begin()
        del model, reader
        make = _edited if request.method == "edit" else _trained
        patch, before, after = make(request, forget, retain, work, resume, progress, said)
        sha256 = save_patch(patch, request.out)
        if request.final is not None:
            _write_final(request, patch, progress)
    shutil.rmtree(work, ignore_errors=True)
    return Unlearned(
        patch=str(request.out),
        sha256=sha256,
        method=request.method,
        mode=request.mode,
        tensors=len(patch.header.base),
        known=known,
        loss_before=before,
        loss_after=after,
        seconds=time.monotonic() - began,
        final=None if request.final is None else str(request.final),
        warning=WHY,
        notes=tuple(notes),
    )


def _records(request: Unlearning) -> tuple[list[Record], list[Record]]:
    """Read both files, which must not share a fact."""
    opened = open_model(request.model, device=request.device)[1]
    modalities = modalities_of(opened) or ["image"]
    forget = read_questions(request.forget, modalities=modalities)
    retain = read_questions(request.retain, modalities=modalities)
    check_apart(forget, retain)
    return forget, retain


Made = tuple[Patch, dict[str, float], dict[str, float]]


def _edited(
    request: Unlearning,
    forget: Sequence[Record],
    retain: Sequence[Record],
    work: Path,
    resume: bool,
    progress: Progress | None,
    said: Callable[[str], None],
) -> Made:
    patch = edit_away(
        request.model,
        forget,
        retain,
        work / "edit",
        to=request.to,
        settings=dict(request.options),
        seed=request.seed,
        resume=resume,
        device=request.device,
        progress=progress,
        said=said,
    )
    return patch, {}, {}


def _trained(
    request: Unlearning,
    forget: Sequence[Record],
    retain: Sequence[Record],
    work: Path,
    resume: bool,
    progress: Progress | None,
    said: Callable[[str], None],
) -> Made:
    opened = open_composed(request.start or request.model)
    if request.method == "retrain" and request.start is None:
        _forget_everything(opened, request.seed)
    samples = {
        role: tokenise_all(as_role(records, role), opened.tokenizer)
        for role, records in ((FORGET, forget), (RETAIN, retain))
    }
    layers = len(decoder_layers(opened.model.language_model))
    stage = stage_of(request.method, layers, request.options)

    def report(name: str, step: StepProgress) -> None:
        if progress:
            progress(f"{name} (loss {step.loss:.3f})"[:40], int(step.fraction * 1000), 1000)

    tuning = Tuning(
        opened,
        [stage],
        _settings(request),
        [sample for each in samples.values() for sample in each],
        seed=request.seed,
        report=report,
    )
    for note in tuning.check(work):
        said(note)
    before = _losses(tuning, samples)
    tuning.run(Budget("samples", request.steps * request.batch_size), work / "training")
    after = _losses(tuning, samples)
    tuning.save(work / "model")
    patch = difference(work / "model", request.model, name=request.out.stem, progress=progress)
    return patch, before, after


def _settings(request: Unlearning) -> TrainSettings:
    mode = "full" if request.method == "retrain" else request.mode
    rate = RATES[mode] if request.rate is None else request.rate
    return TrainSettings(
        llm=mode,
        learning_rates=LearningRates(connector=0, llm=rate, encoder=0),
        batch_size=request.batch_size,
        lora_rank=request.rank,
        lora_alpha=2.0 * request.rank,
        device=request.device,
        val_points=1,
    )


def _losses(tuning: Tuning, samples: dict[str, list[Sample]]) -> dict[str, float]:
    """Return nats per token of the answers, by role."""
    tuning.model.eval()
    return {
        role: score(tuning.model, own, tuning.collator, tuning.device).mean_loss
        for role, own in samples.items()
    }


def _forget_everything(opened: OpenedModel, seed: int) -> None:
    """Redraw the language model's weights."""
    import torch

    torch.manual_seed(seed)
    fresh = AutoModelForCausalLM.from_config(opened.model.language_model.config)
    opened.model.language_model.load_state_dict(fresh.state_dict())


def _write_final(request: Unlearning, patch: Patch, progress: Progress | None) -> None:
    """Write the model with the patch as a separate folder, and search it for what was forgotten."""
    assert request.final is not None
    model, reader = open_model(request.model)
    with applied(model, patch):
        composed_of(model, reader, str(request.model)).save(request.final)
    try:
        check_final(request.final, request.model, patch.header.base, progress)
    except ModalignError:
        shutil.rmtree(request.final)
        raise
